"""Coverage of both model zoos: trace, gate, prune, slim, rebuild and train one small model of every family.

    python tools/dev/zoo.py --out-dir work_dirs/zoo                      # one process per model; resumes where it ended
    python tools/dev/zoo.py --out-dir work_dirs/zoo --write docs/zoo.md  # the table of what has been measured
    python tools/dev/zoo.py --out-dir work_dirs/both --attention both    # heads and channels of heads go
    python tools/dev/zoo.py --select                                     # choose the models again (zoo_models.py)

A finished model has OUT_DIR/SCOPE/FAMILY.json and is not run again; delete the file to repeat it. ``zoo_measure.py``
says what is measured and how, ``zoo_select.py`` how models are chosen.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import zoo_models
from zoo_libraries import SECTION
from zoo_select import SCOPES, module_text, select
from zoo_table import page

from mmprune_gates import cli
from mmprune_gates.channels.trace import ATTENTION

Model = tuple[str, str, str]  # scope, family, config


@cli.reports_errors
def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = cli.plain_parser(__doc__)
    parser.add_argument('--out-dir', type=Path, help='folder of the results')
    parser.add_argument('--only', default='*', metavar='PATTERN', help='SCOPE/FAMILY, with wildcards')
    parser.add_argument('--jobs', type=int, default=1, help='models at a time')
    parser.add_argument('--timeout', type=float, default=240, metavar='SECONDS', help='limit for one model')
    parser.add_argument(
        '--write',
        type=Path,
        metavar='FILE',
        help='write the table, and JSON beside it; measure nothing',
    )
    parser.add_argument('--attention', default='heads', choices=ATTENTION, help='what attention loses')
    parser.add_argument('--select', action='store_true', help='choose the models; measure nothing')
    parser.add_argument('--measure', nargs=3, metavar=('SCOPE', 'CONFIG', 'FILE'), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.select:
        selected = {scope: select(scope) for scope in SCOPES}
        cli.write_text(Path(zoo_models.__file__), module_text(selected))
    elif args.measure:
        from zoo_measure import Probe, measure

        scope, config, file = args.measure
        measure(Probe(scope, config, args.attention), Path(file))
    elif args.out_dir is None:
        parser.error('--out-dir is required')
    elif args.write:
        results = collect(args.out_dir)
        missing = [name for name in (f'{scope}/{family}' for scope, family, _ in families()) if name not in results]
        others = args.write.read_text().partition(SECTION)[1:] if args.write.is_file() else ()
        cli.write_text(args.write, page(results, zoo_models.EXCLUDED, missing) + ''.join(others))
        cli.write_json(args.write.with_suffix('.json'), {'models': results, 'excluded': zoo_models.EXCLUDED})
    else:
        measured = partial(run, args.out_dir, timeout=args.timeout, options=('--attention', args.attention))
        sweep(args.out_dir, args.only, measured, in_words, args.jobs)
    return 0


def families() -> Iterator[Model]:
    """Every model of the table, segmentors first, smallest first."""
    for scope, table in zoo_models.SELECTED.items():
        for family, config in table.items():
            yield scope, family, config


def result_path(out_dir: Path, model: Model) -> Path:
    """The file of a model's result."""
    return out_dir / model[0] / f'{model[1]}.json'


def collect(out_dir: Path) -> dict[str, dict]:
    """SCOPE/FAMILY -> result of every finished model, in the order of the table."""
    found = {f'{model[0]}/{model[1]}': result_path(out_dir, model) for model in families()}
    return {name: cli.read_json(path) for name, path in found.items() if path.is_file()}


def sweep(
    out_dir: Path, only: str, measured: Callable[[Model], dict], told: Callable[[dict], str], jobs: int = 1
) -> None:
    """Measure every model that matches and has no result yet.

    Args:
        out_dir: Folder of the results.
        only: Names that match, as SCOPE/FAMILY with wildcards.
        measured: Measures a model and returns its result.
        told: A result in words, to print.
        jobs: Models at a time.

    Raises:
        ValueError: No model matches.
    """
    matching = [model for model in families() if fnmatch(f'{model[0]}/{model[1]}', only)]
    if not matching:
        raise ValueError(f'--only {only!r} matches no family; they are named SCOPE/FAMILY, such as mmseg/fcn')
    todo = [model for model in matching if not result_path(out_dir, model).is_file()]
    print(f'{len(matching) - len(todo)} of {len(matching)} are there')
    with ThreadPoolExecutor(jobs) as pool:
        for model, result in zip(todo, pool.map(measured, todo), strict=True):
            print(f'{model[0]}/{model[1]}: {told(result)}', flush=True)


def in_words(result: dict) -> str:
    """The result of one model in words."""
    share, seconds = result.get('prunable_share', 0), sum(result['seconds'].values())
    return f'{share:.1%} prunable, {seconds:.0f} s. {failures_of(result)}'


def failures_of(result: dict) -> str:
    """The stages that failed, and why."""
    return '; '.join(f'{stage}: {text}' for stage, text in result['failures'].items())


def run(out_dir: Path, model: Model, timeout: float, tool: str = __file__, options: Sequence[str] = ()) -> dict:
    """Measure one model in its own process; if that dies or runs out of time, its results so far are kept.

    Args:
        out_dir: Folder of the results.
        model: The model.
        timeout: Seconds it may take.
        tool: The file that measures, called with ``--measure SCOPE CONFIG FILE``.
        options: Further arguments of it.
    """
    scope, _, config = model
    target = result_path(out_dir, model)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished, log = target.with_suffix('.partial'), target.with_suffix('.log')
    unfinished.unlink(missing_ok=True)
    command = [sys.executable, tool, '--measure', scope, config, str(unfinished), *options]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'}
    ended = None
    with log.open('w') as file:
        try:
            done = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment, timeout=timeout, check=False
            )
            ended = f'the process ended with code {done.returncode}' if done.returncode else None
        except subprocess.TimeoutExpired:
            ended = f'timeout after {timeout:g} s'
    empty = {'config': config, 'failures': {}, 'seconds': {}}
    result = cli.read_json(unfinished) if unfinished.is_file() else empty
    if ended:
        result['failures'] = {k: v for k, v in result['failures'].items() if v != 'skipped'}
        result['failures'][result.pop('running', 'start')] = ended
    cli.write_json(target, result)
    unfinished.unlink(missing_ok=True)
    return result


if __name__ == '__main__':
    sys.exit(main())
