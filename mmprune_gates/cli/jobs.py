"""Our own command lines as child processes, side by side, with one CPU thread each."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

from mmengine.config import Config
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mmprune_gates.cli.files import read_json, write_json

TRAINED = 'trained.json'
STEP = re.compile(
    r'(?:Iter|Epoch)\(train\)\s*(?:\[\s*(?P<epoch>\d+)\])?\[\s*(?P<done>\d+)/(?P<total>\d+)\]'
    r'.*?loss: (?P<loss>[\d.]+)(?:.*macs_ratio: (?P<macs>[\d.]+))?'
)


class Jobs:
    """Runs our command lines, with products and logs below one folder.

    Args:
        work_dir: That folder.
        tools: Folder of the command lines, that of ``train.py``.
        paths: Further folders in which the configs' ``custom_imports`` are searched.
    """

    def __init__(self, work_dir: Path, tools: Path, paths: Iterable[str | Path] = ()) -> None:
        self.work_dir = work_dir
        self.tools = tools
        self.paths = [str(path) for path in paths]
        self.console = Console()

    def train(self, jobs: Mapping[str, Sequence], at_once: int | None = None) -> None:
        """Run several ``tools/train.py`` with progress bars.

        Args:
            jobs: Name of the sub-folder -> arguments of ``tools/train.py``, the config first.
            at_once: How many run at a time; None for all.

        Raises:
            SystemExit: One failed; the others running at that time were waited for.
        """
        description = TextColumn('{task.description}', justify='right')
        state = TextColumn('{task.fields[state]}')
        columns = (description, BarColumn(), state, TimeElapsedColumn(), TimeRemainingColumn())
        trainings = []
        with Progress(*columns, console=self.console) as progress:
            for name, arguments in jobs.items():
                task = progress.add_task(name, total=None, start=False, state='waiting')
                # Read here: mmengine cannot read configs in several threads at a time.
                epochs = Config.fromfile(arguments[0]).train_cfg.get('max_epochs')
                trainings.append(partial(self.train_one, name, arguments, epochs, progress, task))
            self.side_by_side(trainings, at_once)

    def train_one(self, name: str, arguments: Sequence, epochs: int | None, progress: Progress, task) -> None:
        """Run one training, its output in ``train.log``, its steps on a progress bar; ``epochs`` if it counts them."""
        folder = self.work_dir / name
        folder.mkdir(parents=True, exist_ok=True)
        for stale in (TRAINED, 'last_checkpoint'):
            (folder / stale).unlink(missing_ok=True)
        progress.start_task(task)
        progress.update(task, state='starting')
        begin = time.monotonic()
        config, *options = arguments
        command = ['train.py', config, '--work-dir', folder, *options]
        path = folder / 'train.log'
        total = 1
        with path.open('w', buffering=1) as log, self.tool(command, subprocess.PIPE) as process:
            for line in process.stdout or ():
                log.write(line)
                found = STEP.search(line)
                if found:
                    shown = progress_of(found, epochs)
                    total = shown['total']
                    progress.update(task, **shown)
        progress.update(task, total=total, completed=total)
        if process.returncode:
            raise failed('train.py', path)
        last = (folder / 'last_checkpoint').read_text().strip()
        seconds = round(time.monotonic() - begin)
        write_json(folder / TRAINED, {'checkpoint': Path(last).name, 'seconds': seconds})

    def run(self, name: str, *command) -> None:
        """Run one of our command lines to its end, with its output in ``NAME.log``.

        Raises:
            SystemExit: It failed.
        """
        tool = command[0]
        self.console.print(f'[dim]tools/{tool} ({name})')
        path = self.work_dir / f'{name}.log'
        with path.open('w') as log, self.tool(command, log) as process:
            process.wait()
        if process.returncode:
            raise failed(tool, path)

    def tool(self, command: Sequence, stdout) -> subprocess.Popen:
        """Start one of our command lines with one CPU thread: two would wait for each other on a busy machine."""
        paths = list(self.paths)
        inherited = os.environ.get('PYTHONPATH')
        if inherited:
            paths.insert(0, inherited)
        own = {'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore', 'PYTHONPATH': os.pathsep.join(paths)}
        environment = os.environ | own
        name, *arguments = command
        parts = [str(part) for part in (sys.executable, self.tools / name, *arguments)]
        return subprocess.Popen(parts, stdout=stdout, stderr=subprocess.STDOUT, text=True, env=environment)

    def trained(self, name: str) -> bool:
        """Whether a training ran to its end."""
        return (self.work_dir / name / TRAINED).is_file()

    def last(self, name: str) -> Path:
        """Last checkpoint of a finished training."""
        folder = self.work_dir / name
        training = read_json(folder / TRAINED)
        return folder / training['checkpoint']

    @staticmethod
    def side_by_side(tasks: Sequence[Callable[[], None]], at_once: int | None = None) -> None:
        """Call functions in threads, some at a time; after an error no further one starts, and it is raised."""
        with ThreadPoolExecutor(at_once or max(1, len(tasks))) as pool:
            try:
                futures = [pool.submit(task) for task in tasks]
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def progress_of(found: re.Match, epochs: int | None) -> dict:
    """The fields of a progress bar from a line of a training log."""
    done = int(found['done'])
    total = int(found['total'])
    if found['epoch'] and epochs:
        done += (int(found['epoch']) - 1) * total
        total *= epochs
    state = f'loss {found["loss"]}'
    if found['macs']:
        state += f', MACs {float(found["macs"]):.0%}'
    return {'completed': done, 'total': total, 'state': state}


def failed(tool: str, log: Path) -> SystemExit:
    """The exception for a command line that failed: its message, or else its last line, and the path of its log."""
    lines = log.read_text().strip().splitlines() or ['no output']
    begin = f'{tool}: error: '
    told = [line.removeprefix(begin) for line in lines if line.startswith(begin)]
    last = (told or lines)[-1]
    return SystemExit(f'tools/{tool} failed: {last} (see {log})')
