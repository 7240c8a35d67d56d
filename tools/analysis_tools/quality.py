r"""Continue training the same dense starts by several methods: to the same MACs, in as many steps, over several seeds.

Every run writes one JSON file below WORK_DIR/runs, so that an interrupted benchmark continues. A plan names the runs:
``peers`` compares with Torch-Pruning (the extra ``benchmark``), training from scratch and DCFP, ``quick`` only checks
that all methods work. :mod:`quality_table` makes table and picture of a plan.

Example::

    python tools/analysis_tools/quality.py peers --work-dir work_dirs/quality
    python tools/analysis_tools/quality_table.py peers --work-dir work_dirs/quality --out docs/benchmarks/quality
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmprune_gates import cli  # cures come before the imports below

# isort: split
import torch
from mmengine.logging import MMLogger
from quality_methods import METHODS
from quality_plans import PLANS, Run
from quality_provenance import PACKAGES, commit, machine, versions
from quality_tasks import TASKS
from quality_training import dense_start, further_training, train
from rich.progress import track


def quiet() -> None:
    """Use one thread, and silence mmengine's log."""
    torch.set_num_threads(1)
    MMLogger.get_instance('quality', log_level='ERROR')


def carry_out(run: Run, work_dir: Path) -> None:
    """Carry out one run and write its figures, unless they are there.

    Raises:
        ValueError: A file of that name is of a run with other options.
    """
    path = work_dir / 'runs' / f'{run.name}.json'
    if path.is_file():
        check_same(run, path)
        return
    quiet()
    made = {'commit': commit(), 'machine': machine(), 'versions': versions(PACKAGES)}
    data = TASKS[run.task].on(work_dir / 'data')
    method = METHODS[run.method](run.share, **run.options, **from_before(run, path.parent))
    training = further_training(data, run.seed, work_dir / 'starts', run.rate_scale)
    whole = data.macs(training.model)
    figures = train(training, method)
    facts = {
        **made,
        'metric': data.task.metric,
        'score': data.score(training.model),
        'seconds': round(training.seconds, 2),
        'steps': len(training.losses),
        **figures,
        'macs': {'before': whole, 'after': data.macs(training.model)},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    cli.write_json(path, {**asdict(run), **facts, 'losses': training.losses})


def check_same(run: Run, path: Path) -> None:
    """Refuse the result of a run with other options.

    Raises:
        ValueError: It is one.
    """
    stored, own = cli.read_json(path), json.loads(json.dumps(asdict(run)))
    if others := [key for key, value in own.items() if stored.get(key) != value]:
        raise ValueError(f'{path} is of a run with other {", ".join(others)}: remove it, or use another --work-dir')


def from_before(run: Run, folder: Path) -> dict[str, Any]:
    """Options that a run takes from the run it follows: the channels kept."""
    return {'kept': cli.read_json(folder / f'{run.after}.json')['kept']} if run.after else {}


def prepare(task: str, seed: int, work_dir: Path) -> None:
    """Write a task's data, and train its dense start."""
    quiet()
    dense_start(TASKS[task].on(work_dir / 'data'), seed, work_dir / 'starts')


def waves(runs: list[Run]) -> list[list[Run]]:
    """The runs in their order, split into waves: a new one begins before a run that follows one of the current wave.

    Raises:
        ValueError: A run follows one that the plan does not have before it.
    """
    parts: list[list[Run]] = [[]]
    before: set[str] = set()
    for run in runs:
        if run.after in {other.name for other in parts[-1]}:
            parts.append([])
        elif run.after and run.after not in before:
            raise ValueError(f'{run.name} follows {run.after}, which the plan does not have before it: add it there')
        parts[-1].append(run)
        before.add(run.name)
    return parts


@cli.reports_errors
def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = cli.plain_parser(__doc__)
    parser.add_argument('plan', choices=PLANS)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/quality'))
    parser.add_argument('--tasks', nargs='+', choices=TASKS, default=list(TASKS), help='only runs of these')
    parser.add_argument('--processes', type=int, default=os.cpu_count())
    args = parser.parse_args(argv)
    runs = [run for run in PLANS[args.plan]() if run.task in args.tasks]
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(args.processes, mp_context=context) as pool:
        for task in dict.fromkeys(run.task for run in runs):
            TASKS[task].on(args.work_dir / 'data')  # two processes would both write it
        starts = dict.fromkeys((run.task, run.seed) for run in runs)
        wait_for([pool.submit(prepare, *start, args.work_dir) for start in starts], 'dense starts')
        for wave in waves(runs):
            wait_for([pool.submit(carry_out, run, args.work_dir) for run in wave], args.plan)
    return 0


def wait_for(tasks: list[Future], title: str) -> None:
    """Wait for all tasks; after an error no further one starts, and it is raised."""
    try:
        for done in track(as_completed(tasks), title, len(tasks)):
            done.result()
    except BaseException:
        for task in tasks:
            task.cancel()
        raise


if __name__ == '__main__':
    sys.exit(main())
