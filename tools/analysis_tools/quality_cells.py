"""The cells of the quality benchmark's tables: results of the runs of a task, a method and a cut."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmprune_gates import cli  # cures come before the imports below

# isort: split
from quality_plans import ARMS, Run

ARM_OF = {(arm.method, arm.label): arm for arm in ARMS}
Results = list[tuple[Run, dict[str, Any]]]  # runs and the contents of their files


def read_runs(plan: str, runs: Iterable[Run], folder: Path) -> tuple[Results, list[str]]:
    """The contents of the files of a plan's runs, and the names of the runs without a file.

    Raises:
        ValueError: None of the files is there.
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
    arm = ARM_OF.get((run.method, run.label))
    return arm.title if arm else f'{run.method} {run.label}'.strip()


def family_of(run: Run) -> str:
    """The family of methods that a run's method is shown with."""
    arm = ARM_OF.get((run.method, run.label))
    return arm.family if arm else ''


def cells_of(runs: Iterable[Run], results: Results) -> list[dict[str, Any]]:
    """One cell for each task, method and cut of a plan, whether its runs are there or not."""
    found = {run.name: figures for run, figures in results}
    by_cell: dict[tuple, list[Run]] = {}
    for run in runs:
        by_cell.setdefault((run.task, title_of(run), run.share), []).append(run)
    compared: dict[tuple, int] = {}
    for (task, _, share), cell in by_cell.items():
        planned = len({run.rate_scale for run in cell})
        compared[task, share] = max(planned, compared.get((task, share), 1))
    for (task, _, share), cell in by_cell.items():
        planned = len({run.rate_scale for run in cell})
        rates = complete_rates(cell, found)
        if 0 < rates < planned:  # what a method lacks is not counted for the others; a method may be planned with fewer
            compared[task, share] = min(rates, compared[task, share])
    return [cell_of(cell, found, compared[task, share]) for (task, _, share), cell in by_cell.items()]


def complete_rates(runs: Sequence[Run], found: Mapping[str, dict]) -> int:
    """Number of a cell's learning rates, in the order of the plan, before the first that lacks a seed."""
    rates = list(dict.fromkeys(run.rate_scale for run in runs))
    lacking = {run.rate_scale for run in runs if run.name not in found}
    return next((place for place, rate in enumerate(rates) if rate in lacking), len(rates))


def cell_of(runs: Sequence[Run], found: Mapping[str, dict], alike: int) -> dict[str, Any]:
    """The figures of one cell: those of the best competing learning rate, and the others.

    Args:
        runs: All planned runs; they differ in seed and learning rate.
        found: Name of a run -> contents of its file, of those that are there.
        alike: How many rates, in the order of the plan, compete: as many for every method of the task at this cut. If a
            cell lacks runs, its rate with the most seeds counts.
    """
    by_rate: dict[float, dict[int, dict]] = {}
    for run in runs:
        if run.name in found:
            by_rate.setdefault(run.rate_scale, {})[run.seed] = found[run.name]
    columns = {rate: column_of(by_seed) for rate, by_seed in by_rate.items()}
    planned = list(dict.fromkeys(run.rate_scale for run in runs))
    competing = [rate for rate in planned[:alike] if rate in columns] or list(columns)
    best = max(competing, key=lambda rate: (len(by_rate[rate]), columns[rate]['mean']), default=None)
    first = runs[0]
    return {
        'task': first.task,
        'method': title_of(first),
        'family': family_of(first),
        'share': first.share,
        'rates_compared': alike,
        'rate_scale': best,
        **(column_of({}) if best is None else columns[best]),
        'other_rates': {f'{rate:g}': columns[rate] for rate in sorted(columns) if rate != best},
        'lacks': len({run.seed for run in runs}) - len(by_rate.get(best, ())),
        'missing': [run.name for run in runs if run.name not in found],
    }


def column_of(by_seed: Mapping[int, dict]) -> dict[str, Any]:
    """Mean, spread (standard deviation of a sample) and all values of runs that differ only in the seed."""
    scores = {str(seed): by_seed[seed]['score'] for seed in sorted(by_seed)}
    values = list(scores.values())
    kept = [found['macs']['after'] / found['macs']['before'] for found in by_seed.values()]
    seconds = [found['seconds'] for found in by_seed.values()]
    return {
        'mean': statistics.mean(values) if values else None,
        'spread': statistics.stdev(values) if len(values) > 1 else None,
        'scores': scores,
        'macs_share': statistics.mean(kept) if kept else None,
        'steps': max((found['steps'] for found in by_seed.values()), default=None),
        'seconds': statistics.mean(seconds) if seconds else None,
    }
