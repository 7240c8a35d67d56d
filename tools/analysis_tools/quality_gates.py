r"""Print what a plan's runs of GDP recorded of their gates: a Markdown table, one row for each task, cut and label.

    mean and each value     of the metric; the first row is that of the dense model, trained on
    relaxed                 share of the MACs by gate values just before the gates settle
    between, decided        gates neither closed nor open then, and those that rounding moves to the other side
    closed                  those of the latter that it closes, since too much is open; the others fill up the budget
    late                    gates that end on the other side of where they were when the target reached its end
    at settling             the metric just before and just after it
    step                    how far the loss of the 25 steps after settling lies above that of the 25 before, in
                            standard deviations of such differences elsewhere in the run
    time                    processor time of all steps over that of the dense model

Example::

    python tools/analysis_tools/quality_gates.py updates --work-dir work_dirs/quality
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmprune_gates import cli  # cures come before the imports below

# isort: split
from quality_cells import Results, read_runs
from quality_plans import PLANS

WINDOW = 25  # steps whose mean loss is compared
HEAD = (
    'task', 'MACs kept', 'run', 'mean', 'each', 'relaxed', 'between', 'decided', 'closed', 'late', 'at settling',
    'step', 'time',
)  # fmt: skip


def loss_step(losses: Sequence[float], step: int) -> float:
    """Rise of the loss at a step, in standard deviations of its rises elsewhere.

    Args:
        losses: Loss of every step.
        step: The first step after the event.
    """

    def rise(place: int) -> float:
        return statistics.mean(losses[place : place + WINDOW]) - statistics.mean(losses[place - WINDOW : place])

    elsewhere = [place for place in range(WINDOW, len(losses) - WINDOW, WINDOW) if abs(place - step) >= 2 * WINDOW]
    if step < WINDOW or len(elsewhere) < 2:
        return math.nan  # too short a run to tell
    return rise(step) / statistics.stdev(map(rise, elsewhere))


def rows_of(results: Results) -> list[list[str]]:
    """Rows of the table."""
    dense = {(run.task, run.seed, run.rate_scale): found for run, found in results if run.method == 'dense'}
    cells: dict[tuple, list[tuple[Any, dict]]] = {}
    for run, found in results:
        rate = '' if run.rate_scale == 1 else f'×{run.rate_scale:g}'
        name = ' '.join(filter(None, (run.method, run.label, rate)))
        cells.setdefault((run.task, run.share, name), []).append((run, found))
    return [row_of(key, cell, dense) for key, cell in cells.items()]


def row_of(key: tuple[str, float, str], cell: list[tuple[Any, dict]], dense: dict[tuple, dict]) -> list[str]:
    """One row: runs that differ only in the seed."""
    task, share, name = key
    found = [figures for _, figures in cell]
    scores = [figures['score'] for figures in found]
    ratios = []
    for run, own in cell:
        if whole := dense.get((run.task, run.seed, run.rate_scale)):
            ratios.append(own['seconds'] / whole['seconds'])
    settled = [own for own in found if 'score_settled' in own]
    pairs = [
        f'{own["score_before_cut"]:.1f} → {own["score_settled"]:.1f}' for own in settled if 'score_before_cut' in own
    ]
    steps = [f'{loss_step(own["losses"], own["step"]):+.1f}' for own in found if 'step' in own]
    return [
        task,
        f'{share:g}',
        name,
        f'{statistics.mean(scores):.2f}',
        ', '.join(f'{score:.2f}' for score in scores),
        ', '.join(f'{own["soft_share"]:.3f}' for own in found if 'soft_share' in own),
        most(found, 'undecided'),
        most(found, 'decided_last'),
        most(found, 'closed_last'),
        most(found, 'late'),
        ', '.join(pairs),
        ', '.join(steps),
        f'{statistics.mean(ratios):.2f}' if ratios else '',
    ]


def most(found: list[dict], key: str) -> str:
    """The largest of the runs' shares, as a percentage; empty where they have none."""
    values = [own[key] for own in found if key in own]
    return f'≤ {max(values):.1%}' if values else ''


@cli.reports_errors
def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = cli.plain_parser(__doc__)
    parser.add_argument('plan', choices=PLANS)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/quality'))
    args = parser.parse_args(argv)
    results, missing = read_runs(args.plan, PLANS[args.plan](), args.work_dir / 'runs')
    lines = [f'| {" | ".join(HEAD)} |', f'|{"---|" * len(HEAD)}']
    lines += [f'| {" | ".join(row)} |' for row in rows_of(results)]
    print('\n'.join(lines))
    if missing:
        print(f'\n{len(missing)} runs are missing: {", ".join(missing)}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
