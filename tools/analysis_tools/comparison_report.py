"""Results of a comparison of baselines: figures, table and picture."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from mmprune_gates import cli  # cures come before the imports below

# isort: split
from baselines import run_length
from matplotlib.figure import Figure
from mmengine.config import Config
from rich.console import Console
from rich.table import Table

from mmprune_gates.report.pictures import png_of
from mmprune_gates.report.run import METRICS

COLOURS = {'dense': '#5a5a5a', 'pruned': '#2a788e', 'shrunk': '#d98032', 'scratch': '#8a5ea8'}
MEANING = {
    'dense': 'the start, trained on without gates',
    'pruned': 'the start, trained on with gates, slimmed',
    'shrunk': 'all widths scaled by one number, from scratch',
    'scratch': 'the pruned architecture, from scratch',
}


def figures_of(
    start: Config, prune: Config, results: dict[int, dict[str, dict]], metric: str | None, title: str | None
) -> dict[str, Any]:
    """All results of a comparison, as plain values.

    Args:
        start: Config of the dense start.
        prune: Config of the gated run.
        results: Seed -> kind -> ``macs`` and ``metrics``.
        metric: Key of the metrics to compare by; by default the first of :data:`METRICS` there is.
        title: Title of table and picture; by default model and data.

    Returns:
        ``metric``, ``kinds`` (name -> mean, standard deviation and per seed) and where they come from.
    """
    metric = choose_metric(results, metric)
    (first, unit), (second, _) = run_length(start), run_length(prune)
    length = {unit: first + second}
    kinds = {kind: {**figures_of_kind(kind, results, metric), **length} for kind in next(iter(results.values()))}
    return {
        'title': title or title_of(start),
        'metric': metric,
        'start': {'config': Path(start.filename).name, unit: first},
        'prune': {'config': Path(prune.filename).name, unit: second},
        'unit': unit,
        'kinds': kinds,
    }


def figures_of_kind(kind: str, results: dict[int, dict[str, dict]], metric: str) -> dict[str, Any]:
    """Mean, standard deviation of a sample, MACs and single results of one kind of model."""
    values = [row[kind]['metrics'][metric] for row in results.values()]
    return {
        'meaning': MEANING[kind],
        'mean': statistics.mean(values),
        'std': statistics.stdev(values) if len(values) > 1 else None,
        'macs_mean': statistics.mean(row[kind]['macs'] for row in results.values()),
        'macs_share': statistics.mean(row[kind]['macs'] / row['dense']['macs'] for row in results.values()),
        'seeds': {str(seed): {'config': config_name(seed, kind), **row[kind]} for seed, row in results.items()},
    }


def config_name(seed: int, kind: str) -> str:
    """Path of a model's config in the work directory."""
    return f'seed_{seed}/slim/slim.py' if kind == 'pruned' else f'seed_{seed}/{kind}.py'


def choose_metric(results: dict[int, dict[str, dict]], wanted: str | None) -> str:
    """The metric to compare by.

    Raises:
        ValueError: It is not among the results.
    """
    found = next(iter(next(iter(results.values())).values()))['metrics']
    for name in [wanted] if wanted else METRICS:
        if name in found:
            return name
    raise ValueError(
        f'--metric: no {wanted or " or ".join(METRICS)} among the results of the tests; have {list(found)}'
    )


def title_of(config: Config) -> str:
    """Model and data of a config, by the names of their classes."""
    parts = [config.model[part]['type'] for part in ('backbone', 'decode_head') if config.model.get(part)]
    model = ' + '.join(str(part).split('.')[-1] for part in parts or [config.model['type']])
    data = config.train_dataloader.dataset
    folder = Path(str(data.get('data_root') or '')).name
    return f'{model} on {str(data["type"]).split(".")[-1]}' + (f' {folder}' if folder else '')


def table_of(figures: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of a comparison."""
    kinds = figures['kinds']
    seeds = list(next(iter(kinds.values()))['seeds'])
    std = ['std'] if len(seeds) > 1 else []
    head = ['', 'MACs', 'of dense', 'mean', *std, *(f'seed {seed}' for seed in seeds)]
    rows = []
    for name, kind in kinds.items():
        row = [name, f'{kind["macs_mean"] / 1e6:.2f} M', f'{kind["macs_share"]:.1%}']
        row += [f'{kind["mean"]:.2f}', *([f'{kind["std"]:.2f}'] if std else [])]
        rows.append(row + [f'{one["metrics"][figures["metric"]]:.2f}' for one in kind['seeds'].values()])
    return head, rows


def note_of(figures: dict[str, Any]) -> str:
    """How long every model was trained, in one line."""
    start, prune, unit = figures['start'], figures['prune'], figures['unit']
    total = start[unit] + prune[unit]
    return f'{total} {unit} each: {start["config"]} ({start[unit]}), then {prune["config"]} ({prune[unit]})'


def markdown(figures: dict[str, Any]) -> str:
    """The comparison as a page of markdown."""
    head, rows = table_of(figures)
    lines = [
        f'# {figures["title"]}: {figures["metric"]}',
        '',
        note_of(figures),
        '',
        f'| {" | ".join(head)} |',
        f'|{"---|" * len(head)}',
    ]
    lines += [f'| {" | ".join(row)} |' for row in rows]
    lines += ['', *(f'- {name}: {kind["meaning"]}' for name, kind in figures['kinds'].items())]
    lines += ['', 'MACs are means over the seeds; std is the standard deviation of a sample.']
    return '\n'.join(lines) + '\n'


def show(console: Console, figures: dict[str, Any]) -> None:
    """Print the table."""
    head, rows = table_of(figures)
    table = Table(title=f'{figures["title"]}: {figures["metric"]}', caption=note_of(figures))
    for name in head:
        table.add_column(name, justify='right' if name else 'left', no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def draw(path: Path, figures: dict[str, Any]) -> None:
    """Write the picture: one dot per seed and a bar for the mean of each kind, the dense mean dashed."""
    kinds, metric = figures['kinds'], figures['metric']
    figure = Figure(figsize=(8, 5), layout='constrained')
    axes = figure.subplots()
    axes.axhline(kinds['dense']['mean'], color=COLOURS['dense'], linestyle='--', linewidth=1)
    for place, (name, kind) in enumerate(kinds.items()):
        values = [one['metrics'][metric] for one in kind['seeds'].values()]
        shifts = [0.16 * (2 * i / (len(values) - 1) - 1) if len(values) > 1 else 0 for i in range(len(values))]
        axes.scatter([place + shift for shift in shifts], values, s=45, color=COLOURS[name], alpha=0.75, zorder=3)
        axes.hlines(kind['mean'], place - 0.28, place + 0.28, color=COLOURS[name], linewidth=2.5, zorder=2)
        beside = {'textcoords': 'offset points', 'xytext': (4, 0), 'va': 'center', 'fontsize': 10}
        box = {'facecolor': 'white', 'edgecolor': 'none', 'pad': 1}
        where = (place + 0.28, kind['mean'])
        axes.annotate(f'{kind["mean"]:.2f}', where, color=COLOURS[name], bbox=box, **beside)
    labels = [
        f'{name}\n{kind["macs_mean"] / 1e6:.2f} M MACs\n({kind["macs_share"]:.1%})' for name, kind in kinds.items()
    ]
    axes.set_xticks(range(len(kinds)), labels)
    axes.set_xlim(-0.5, len(kinds) - 0.3)
    axes.set_ylabel(metric)
    total, unit, count = kinds['dense'][figures['unit']], figures['unit'], len(kinds['dense']['seeds'])
    axes.set_title(
        f'{figures["title"]}\n{total} {unit} each; one dot per seed ({count}), bar: mean, dashed: mean of dense',
        fontsize=11,
    )
    axes.grid(axis='y', alpha=0.3)
    cli.write_bytes(path, png_of(figure, 110))
