r"""Tables and pictures of the results of a plan of the quality benchmark: Markdown, PNG and JSON.

A method's figure at a cut is that of the learning rate with the best mean over the seeds, out of those that the plan
has for it. Cells without a run say so, cells that lack seeds say how many; the JSON file names the missing runs.

Example::

    python tools/analysis_tools/quality_table.py peers --work-dir work_dirs/quality --out docs/benchmarks/quality
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmprune_gates import cli  # cures come before the imports below

# isort: split
from quality_cells import Results, cells_of, read_runs
from quality_picture import draw
from quality_plans import PLANS, Run
from quality_tasks import TASKS


def provenance(plan: str, results: Results) -> dict[str, Any]:
    """Provenance of the figures: machines, versions, commits, seeds, commands, time."""
    used: dict[str, set[str]] = {}
    for _, found in results:
        for name, version in found.get('versions', {}).items():
            used.setdefault(name, set()).add(str(version))
    machines = {found.get('machine') or 'unknown' for _, found in results}
    return {
        'machine': f'{" / ".join(sorted(machines))}, one thread a run',
        'versions': {name: ' / '.join(sorted(found)) for name, found in used.items()},
        'commits': sorted({found.get('commit') or 'unknown' for _, found in results}),
        'seeds': sorted({run.seed for run, _ in results}),
        'commands': [f'python tools/analysis_tools/quality.py {plan}', shlex.join(['python', *sys.argv])],
        'runs': len(results),
        'core_hours': round(sum(found['seconds'] for _, found in results) / 3600, 2),
    }


NOTES = (
    "Mean ± standard deviation over the seeds (each value; the factor of the recipe's learning rate with which it was "
    'reached). Of the rates planned for a method the one with the best mean counts, at each cut; a rate counts once '
    'every method planned with it has been run with it at that cut, all seeds. "MACs" is what was kept, where it '
    'differs from what was asked for by more than 0.5 % of the whole model. "Lacks": seeds that were not run with that '
    'rate. –: not in the plan.'
)


def markdown(figures: Mapping[str, Any]) -> str:
    """All tables as one page."""
    parts = [table(task, figures) for task in figures['metrics']]
    made = figures['provenance']
    versions = ', '.join(f'{name} {version}' for name, version in made['versions'].items() if version)
    commits = ', '.join(made['commits'])
    commands = ', '.join(f'`{line}`' for line in made['commands'])
    source = (
        f'{made["machine"]}; {versions}; commit {commits}; seeds {made["seeds"]}; {made["runs"]} runs in '
        f'{made["core_hours"]} core-hours of steps. Commands: {commands}'
    )
    notes = [NOTES, source]
    if missing := figures['missing']:
        notes.append(f'{len(missing)} of {len(missing) + made["runs"]} runs of the plan are missing.')
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
        f'| MACs removed | {" | ".join(head_of(share, pruned) for share in shares)} |',
        f'|---|{"---|" * len(shares)}',
    ]
    for method in dict.fromkeys(cell['method'] for cell in pruned):
        own = {cell['share']: cell for cell in pruned if cell['method'] == method}
        row = [text_of(own[share]) if share in own else '–' for share in shares]
        lines.append(f'| {method} | {" | ".join(row)} |')
    return '\n'.join(lines)


def head_of(share: float, cells: Sequence[Mapping[str, Any]]) -> str:
    """Head of the column of a cut."""
    rates = next(cell['rates_compared'] for cell in cells if cell['share'] == share)
    return f'{1 - share:.0%} ({"one learning rate" if rates == 1 else f"best of {rates} learning rates"})'


def text_of(cell: Mapping[str, Any]) -> str:
    """One cell in words."""
    if cell['mean'] is None:
        return 'not run'
    spread = '' if cell['spread'] is None else f' ± {cell["spread"]:.1f}'
    values = ' / '.join(f'{value:.1f}' for value in cell['scores'].values())
    remarks = [f'×{cell["rate_scale"]:g}']
    if abs(cell['macs_share'] - cell['share']) > 0.005:
        remarks.append(f'MACs {cell["macs_share"]:.1%}')
    if cell['lacks']:
        remarks.append(f'lacks {cell["lacks"]}')
    return f'**{cell["mean"]:.1f}**{spread} ({values}; {", ".join(remarks)})'


def figures_of(plan: str, runs: Sequence[Run], folder: Path) -> dict[str, Any]:
    """All results of a plan.

    Raises:
        ValueError: None of its runs is there.
    """
    results, missing = read_runs(plan, runs, folder)
    return {
        'provenance': provenance(plan, results),
        'metrics': {run.task: TASKS[run.task].metric for run in runs},
        'cells': cells_of(runs, results),
        'missing': missing,
    }


@cli.reports_errors
def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = cli.plain_parser(__doc__)
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
