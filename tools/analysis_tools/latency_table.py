"""Time the ops of a model on this machine, so that ``cost=dict(type='Latency')`` can prune for speed.

Each op is timed at several widths, then the sum over ops is fitted to the latency of randomly pruned models. Further
ones, to check it, are timed ten at a time in turn with the whole model, like those it was fitted to, so that a machine
that has become slower since does not count as an error. The table grows with every model that is measured; its ops are
not measured again, so an interrupted run continues.

Example::

    python tools/analysis_tools/latency_table.py configs/gdp_deeplabv3plus_voc.py --backend onnxruntime
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from mmprune_gates import cli  # cures come before the imports below

# isort: split
import torch
from latency_picture import latency_picture
from rich.console import Console
from rich.progress import track

from mmprune_gates.budget.latency import Latency
from mmprune_gates.budget.latency_table import BACKENDS, Table, Target, relative_errors
from mmprune_gates.channels import ChannelGraph
from mmprune_gates.channels.kept import Kept
from mmprune_gates.checks import IMAGE, checked
from mmprune_gates.engine.coverage import model_of_config
from mmprune_gates.report.pictures import png_of
from mmprune_gates.timing.table import SELECTIONS, backend_of, fit, latencies, measure, prices, random_selections

CHECK_SEED = 1  # of selections that nothing was fitted to


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.config_parser(__doc__)
    parser.add_argument('--backend', choices=BACKENDS, default=Target.backend)
    parser.add_argument('--device', default=Target.device)
    parser.add_argument('--threads', type=int, default=Target.threads, help='CPU threads')
    parser.add_argument('--batch', type=int, default=Target.batch, help='images at a time')
    parser.add_argument('--shape', type=int, nargs=2, metavar=('H', 'W'), help='input size, where the config has none')
    parser.add_argument('--table', metavar='FILE', help="default: this machine's, in the user's cache")
    parser.add_argument('--check', type=int, default=0, metavar='N', help='compare with N further random selections')
    parser.add_argument('--picture', metavar='PNG', help='draw predicted against measured, and the costliest layers')
    parser.add_argument('--json', metavar='FILE', help='also write the figures here')
    return parser.parse_args(argv)


@cli.reports_errors
def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = parse(argv)
    config = cli.load_config(args.config, args.cfg_options)
    target = Target(args.backend, args.device, args.threads, args.batch)
    path = Path(args.table) if args.table else target.path()
    for file in filter(None, (path, args.picture, args.json)):
        cli.check_writable(file)
    table = table_at(path, target)
    show = functools.partial(track, console=Console(stderr=True), transient=True)
    model, graph, shape = model_of_config(config, args.shape and checked('--shape', (3, *args.shape), IMAGE))
    backend = backend_of(target)
    save = functools.partial(save_table, table, path)
    measure(table, graph, backend, target.batch, save, show)
    cost = Latency(str(path), **vars(target))
    images = torch.randn(target.batch, *shape)
    found = fit(table, graph, model, images, backend, cost, show)
    save()
    whole_ms = found.selections[-1][1]
    time = functools.partial(latencies, model, graph, images=images, backend=backend, show=show)
    chosen = random_selections(graph, table.step, args.check, CHECK_SEED)
    checks, drifts = further(chosen, cost, graph, time, whole_ms)
    report = {
        'config': args.config,
        'table': str(path),
        'target': table.facts,
        'step': table.step,
        'ops': len(graph.workload.works),
        'dense_ms': whole_ms,
        'fit': {'scale': found.scale, 'overhead_ms': found.overhead, **summary(found.selections)},
        'drifts': drifts,
        'check': summary(checks),
    }
    if args.picture:
        figure = latency_picture(cost, table, found.selections, checks)
        cli.write_bytes(args.picture, png_of(figure, dpi=120))
    if args.json:
        cli.write_json(args.json, report)
    print('\n'.join(told(report)))
    return 0


def further(
    chosen: Sequence[Kept], cost: Latency, graph: ChannelGraph, time: Callable[..., list[float]], whole_ms: float
) -> tuple[list[tuple[float, float]], list[float]]:
    """Predicted and measured milliseconds of selections that nothing was fitted to.

    Args:
        chosen: The selections.
        cost: Predicts.
        graph: The channel graph.
        time: Measures selections in turn.
        whole_ms: What the whole model took when the fit was made.

    Returns:
        The pairs, drift taken out; and for every ten, how many times as long the whole model took beside them.
    """
    pairs, drifts = [], []
    for begin in range(0, len(chosen), SELECTIONS):
        part = chosen[begin : begin + SELECTIONS]
        now_ms, *took = time(chosen=[graph.kept(), *part])
        drift = now_ms / whole_ms
        drifts.append(drift)
        for predicted, measured in zip(prices(cost, part).tolist(), took, strict=True):
            pairs.append((predicted, measured / drift))
    return pairs, drifts


def table_at(path: Path, target: Target) -> Table:
    """The table in a file, or an empty one.

    Raises:
        ValueError: It was measured on another machine or with other settings.
    """
    facts = target.facts()
    if not path.is_file():
        return Table(facts)
    table = Table.load(path)
    table.check(path, facts)
    return table


def save_table(table: Table, path: Path) -> None:
    """Write a table, with what another process has measured and written to the file in the meantime."""
    if path.is_file():
        other = Table.load(path)
        table.curves = {**other.curves, **table.curves}
        table.fits = {**other.fits, **table.fits}
    cli.write_text(path, table.text())


def summary(pairs: list[tuple[float, float]]) -> dict:
    """Relative errors of predictions: median and worst, and all pairs."""
    errors = relative_errors(pairs)
    if not errors:
        return {}
    return {'median': median(errors), 'worst': max(errors), 'predicted_and_measured_ms': pairs}


def told(report: dict) -> list[str]:
    """The report in words."""
    facts = report['target']
    lines = [
        f'{facts["backend"]} {facts["version"]} on {facts["machine"]}, {facts["threads"]} threads, batch '
        f'{facts["batch"]}: {report["ops"]} ops, whole model {report["dense_ms"]:.2f} ms',
        f'widths in steps of {report["step"]}',
    ]
    for name, words in (('fit', 'selections it was fitted to'), ('check', 'further random selections')):
        found = report[name]
        if found:
            number = len(found['predicted_and_measured_ms'])
            lines.append(f'{number} {words}: off by {found["median"]:.1%} (median), {found["worst"]:.1%} (worst)')
    if report['check']:
        drifts = ', '.join(f'{drift:.3f}' for drift in report['drifts'])
        lines.append(f'the whole model beside the latter took {drifts} times as long: taken out')
    return [*lines, f'table: {report["table"]}']


if __name__ == '__main__':
    sys.exit(main())
