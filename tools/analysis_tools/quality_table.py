r"""Tables and pictures of what a plan of the quality benchmark found: markdown, PNG and JSON.

A method's figure at a cut is that of the learning rate with the best mean over the seeds. Runs that are missing are
named; a mean is over those that are there.

Example::

    python tools/analysis_tools/quality_table.py peers --work-dir work_dirs/quality --out docs/benchmarks/quality
"""

from __future__ import annotations

import argparse
import platform
import shlex
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmprune_gates import cli  # cures come before the imports below

# isort: split
from quality_picture import draw
from quality_plans import ARMS, PLANS, Run
from quality_provenance import processor, version_of

import mmprune_gates

PACKAGES = ('torch', 'torch-pruning', 'mmengine', 'mmsegmentation', 'mmpretrain', 'numpy')
TITLES = {(arm.method, arm.label): arm.title for arm in ARMS}
Results = list[tuple[Run, dict[str, Any]]]  # what each run's file holds


def read_runs(plan: str, runs: Iterable[Run], folder: Path) -> tuple[Results, list[str]]:
    """What the files of a plan's runs hold, and the names of the runs that have none.

    Raises:
        ValueError: None of them is there.
    """
    results, missing = [], []
    for run in runs:
        path = folder / f'{run.name}.json'
        if path.is_file():
            results.append((run, cli.read_json(path)))
        else:
            missing.append(run.name)
    if not results:
        raise ValueError(f'no run of the plan {plan!r} is in {folder}: python tools/analysis_tools/quality.py {plan}')
    return results, missing


def title_of(run: Run) -> str:
    """Name of a run's method."""
    return TITLES.get((run.method, run.label), f'{run.method} {run.label}'.strip())


def cells_of(results: Results) -> list[dict[str, Any]]:
    """One cell for each task, method and cut: the best of its learning rates, and the others."""
    by_cell: dict[tuple, dict[float, dict[int, dict]]] = {}
    for run, found in results:
        rates = by_cell.setdefault((run.task, title_of(run), run.share), {})
        rates.setdefault(run.rate_scale, {})[run.seed] = found
    return [cell_of(*key, rates) for key, rates in by_cell.items()]


def cell_of(task: str, method: str, share: float, rates: Mapping[float, dict[int, dict]]) -> dict[str, Any]:
    """The figures of one cell.

    Args:
        task: Name of the task.
        method: Title of the method.
        share: MACs that were to be kept / MACs of the whole model.
        rates: Learning rate's factor -> seed -> what that run's file holds.
    """
    columns = {rate: column_of(by_seed) for rate, by_seed in rates.items()}
    best = max(columns, key=lambda rate: columns[rate]['mean'])
    others = {f'{rate:g}': columns[rate] for rate in sorted(columns) if rate != best}
    cell = {'task': task, 'method': method, 'share': share, 'rate_scale': best, **columns[best]}
    return {**cell, 'other_rates': others}


def column_of(by_seed: Mapping[int, dict]) -> dict[str, Any]:
    """Mean, spread (standard deviation of a sample) and every value of the runs that differ in the seed alone."""
    scores = {str(seed): by_seed[seed]['score'] for seed in sorted(by_seed)}
    values = list(scores.values())
    kept = [found['macs']['after'] / found['macs']['before'] for found in by_seed.values()]
    return {
        'mean': statistics.mean(values),
        'spread': statistics.stdev(values) if len(values) > 1 else None,
        'scores': scores,
        'macs_share': statistics.mean(kept),
        'steps': max(found['steps'] for found in by_seed.values()),
        'seconds': statistics.mean(found['seconds'] for found in by_seed.values()),
    }


def provenance(plan: str, results: Results) -> dict[str, Any]:
    """Where the figures come from: machine, versions, commit, seeds, commands, time."""
    installed = {package: version_of(package) for package in PACKAGES}
    return {
        'machine': f'{processor()}, {platform.system()} {platform.machine()}, one thread a run',
        'versions': {'python': platform.python_version(), 'mmprune_gates': mmprune_gates.__version__, **installed},
        'commits': sorted({found.get('commit') or 'unknown' for _, found in results}),
        'seeds': sorted({run.seed for run, _ in results}),
        'commands': [f'python tools/analysis_tools/quality.py {plan}', shlex.join(['python', *sys.argv])],
        'runs': len(results),
        'core_hours': round(sum(found['seconds'] for _, found in results) / 3600, 2),
    }


def markdown(figures: Mapping[str, Any]) -> str:
    """All tables as one page."""
    parts = [table(task, figures) for task in figures['metrics']]
    made = figures['provenance']
    versions = ', '.join(f'{name} {version}' for name, version in made['versions'].items() if version)
    commits = ', '.join(made['commits'])
    notes = [
        'Mean ± standard deviation over the seeds (each value), at the better of two learning rates, chosen for each '
        'method and cut on the mean; × is the factor of the recipe\'s rate. "MACs" is what was kept, where it differs '
        'from what was asked for by more than 0.5 % of the whole model.',
        f'{made["machine"]}; {versions}; commit {commits}; seeds {made["seeds"]}; {made["runs"]} runs in '
        f'{made["core_hours"]} core-hours of steps. Commands: ' + ', '.join(f'`{line}`' for line in made['commands']),
    ]
    if missing := figures['missing']:
        notes.append(f'{len(missing)} runs of the plan are missing: {", ".join(missing)}')
    return '\n\n'.join([*parts, *notes]) + '\n'


def table(task: str, figures: Mapping[str, Any]) -> str:
    """The table of one task: a row for each method, a column for each cut."""
    cells = [cell for cell in figures['cells'] if cell['task'] == task]
    dense = [cell for cell in cells if cell['share'] == 1]
    pruned = [cell for cell in cells if cell['share'] != 1]
    shares = sorted({cell['share'] for cell in pruned}, reverse=True)
    lines = [f'## {task}: {figures["metrics"][task]}', '']
    lines += [f'{cell["method"]}: {text_of(cell)}\n' for cell in dense]
    lines += [
        f'| MACs removed | {" | ".join(f"{1 - share:.0%}" for share in shares)} |',
        f'|---|{"---|" * len(shares)}',
    ]
    for method in dict.fromkeys(cell['method'] for cell in pruned):
        own = {cell['share']: cell for cell in pruned if cell['method'] == method}
        row = [text_of(own[share]) if share in own else '–' for share in shares]
        lines.append(f'| {method} | {" | ".join(row)} |')
    return '\n'.join(lines)


def text_of(cell: Mapping[str, Any]) -> str:
    """One cell in words."""
    spread = '' if cell['spread'] is None else f' ± {cell["spread"]:.1f}'
    values = ' / '.join(f'{value:.1f}' for value in cell['scores'].values())
    off = abs(cell['macs_share'] - cell['share']) > 0.005
    macs = f', MACs {cell["macs_share"]:.1%}' if off else ''
    return f'**{cell["mean"]:.1f}**{spread} ({values}; ×{cell["rate_scale"]:g}{macs})'


def figures_of(plan: str, runs: Sequence[Run], folder: Path) -> dict[str, Any]:
    """Everything that the runs of a plan found.

    Raises:
        ValueError: None of them is there.
    """
    results, missing = read_runs(plan, runs, folder)
    return {
        'provenance': provenance(plan, results),
        'metrics': {run.task: found['metric'] for run, found in results},
        'cells': cells_of(results),
        'missing': missing,
    }


@cli.reports_errors
def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('plan', choices=PLANS)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/quality'))
    parser.add_argument('--out', type=Path, help='folder of what is written; default WORK_DIR')
    args = parser.parse_args(argv)
    out = args.out or args.work_dir
    cli.check_writable(out, is_folder=True)
    figures = figures_of(args.plan, PLANS[args.plan](), args.work_dir / 'runs')
    cli.write_json(out / f'{args.plan}.json', figures)
    cli.write_text(out / f'{args.plan}.md', markdown(figures))
    for task in figures['metrics']:
        draw(out / f'{args.plan}_{task}.png', task, figures)
    print(
        f'{out / args.plan}.json, .md and a picture for each task written; {len(figures["missing"])} runs are missing'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
