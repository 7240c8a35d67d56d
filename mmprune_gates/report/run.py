"""The contents of a run's work directory: config, gates, scalars, checkpoints, and the slim model made from it."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from mmprune_gates.cli.arguments import load_config
from mmprune_gates.engine.files import digest, read_lines
from mmprune_gates.engine.model_config import GATED, pruning_hook_of
from mmprune_gates.engine.product import complete, is_product
from mmprune_gates.engine.record_hook import NAME, read_history
from mmprune_gates.engine.slim_report import read_report

METRICS = ('mIoU', 'accuracy/top1')  # the first one found is shown
NO_METRIC = {'step', 'iter', 'epoch', 'time', 'data_time', 'memory', 'lr'}
NUMBERED = re.compile(r'(iter|epoch)_(\d+)\.pth')
TO_RECORD = "record gates with custom_hooks = [..., dict(type='mmprune_gates.GateRecordHook')]"

Data = dict[str, Any]  # read from JSON or a config
Scalars = list[Data]  # lines of a log


class Absent(Exception):
    """Something that a section needs is missing; the text says what, and what to do."""


class Progress(NamedTuple):
    """How far a run came, how far it was to go, and the unit of both."""

    done: int
    total: int
    unit: str


@dataclass(frozen=True)
class Run:
    """A finished or killed run.

    Attributes:
        folder: Its work directory.
        config_path: The config that the run wrote there; None if there is none.
        config: Its contents; None if it cannot be read.
        config_error: Why ``config`` is None.
        start: The checkpoint that the run started from; None if there was none.
        history: Lines of ``gates.jsonl``.
        train: Scalars of the training iterations, each with ``iter``.
        val: Scalars of the validations; ``iter`` is where in training they happened.
        checkpoint: The last one; None if there is none.
        slim_dir: Folder in which the slim model is looked up.
        slim: Contents of its ``slim.json``; None if there is none.
        slim_error: Why ``slim`` is None.
        doubts: What the user should know before trusting the page.
    """

    folder: Path
    config_path: Path | None
    config: Config | None
    config_error: str
    start: str | None
    history: Scalars
    train: Scalars
    val: Scalars
    checkpoint: Path | None
    slim_dir: Path
    slim: Data | None
    slim_error: str
    doubts: list[str] = field(default_factory=list)

    @property
    def hook(self) -> Data:
        """Config of the hook that prunes; empty if the config is not known or has none."""
        return {} if self.config is None else pruning_hook_of(self.config)

    @property
    def target(self) -> float | None:
        """MACs to keep / MACs of the whole model; None if it is not known, or if the run prunes to another cost."""
        hook = self.hook
        kind = (hook.get('cost') or {}).get('type', 'MACs')
        if str(kind).rpartition('.')[2] != 'MACs':
            return None
        return hook.get('target_macs', hook.get('target'))

    @property
    def metric(self) -> str | None:
        """Name of the validation metric to show."""
        if not self.val:
            return None
        names = [name for name in self.val[-1] if name not in NO_METRIC]
        for name in METRICS:
            if name in names:
                return name
        return names[0] if names else None

    def measured(self) -> list[tuple[int, float]]:
        """Iteration and metric of each validation."""
        metric = self.metric
        return [(line['iter'], line[metric]) for line in self.val if metric in line]

    def with_macs(self) -> Scalars:
        """Scalars of the training iterations for which the pruning hook logged the share of MACs, ``macs_ratio``."""
        return [line for line in self.train if 'macs_ratio' in line]

    def need_config(self) -> Config:
        """The config.

        Raises:
            Absent: There is none, or it is not that of a gated run.
        """
        if self.config is None:
            raise Absent(self.config_error)
        kind = self.config.model.get('type')
        if kind != GATED:
            raise Absent(f'{self.config_path}: model.type is {kind!r}, not {GATED!r}')
        return self.config

    def progress(self) -> Progress | None:
        """How far the run came; None if it is not known how far it was to go."""
        if self.config is None:
            return None
        length = self.config.get('train_cfg') or {}
        iters = length.get('max_iters')
        epochs = length.get('max_epochs')
        if iters:
            saved = saved_at(self.checkpoint, 'iter')
            logged = [line['iter'] for line in self.history + self.train]
            return Progress(max([saved, *logged]), iters, 'iterations')
        if epochs:
            saved = saved_at(self.checkpoint, 'epoch')
            begun = [line['epoch'] - 1 for line in self.train if 'epoch' in line]
            validated = [line['step'] for line in self.val if 'step' in line]
            return Progress(max([saved, *begun, *validated]), epochs, 'epochs')
        return None


def read_run(folder: str | Path, slim_dir: str | Path | None = None) -> Run:
    """Read a work directory.

    Args:
        folder: Work directory of the run.
        slim_dir: Folder of the slim model; by default ``slim`` in the work directory.

    Raises:
        ValueError: The folder holds nothing of a run.
    """
    folder = Path(folder)
    refuse_product(folder)
    slim_dir = Path(slim_dir) if slim_dir else folder / 'slim'
    config_path, config, config_error = find_config(folder)
    train, val = read_scalars(folder)
    history = read_history(folder / NAME)
    if config_path is None and not history and not train:
        there = 'holds no run' if folder.is_dir() else 'is not a folder'
        raise ValueError(
            f'{folder} {there}: expected the config that a run writes (NAME.py), {NAME} or '
            'TIMESTAMP/vis_data/scalars.json. Give the --work-dir of tools/train.py'
        )
    slim, slim_error = read_slim(slim_dir)
    run = Run(
        folder=folder,
        config_path=config_path,
        config=config,
        config_error=config_error,
        start=first_checkpoint(folder, config),
        history=history,
        train=train,
        val=val,
        checkpoint=last_checkpoint(folder),
        slim_dir=slim_dir,
        slim=slim,
        slim_error=slim_error,
    )
    run.doubts.extend(doubts_about(run))
    return run


def refuse_product(folder: Path) -> None:
    """Refuse the folder of a slim model.

    Raises:
        ValueError: It is one.
    """
    if is_product(folder):
        raise ValueError(
            f'{folder} holds a slim model, not a run: give the work folder of the run, and this folder with --slim'
        )


def find_config(folder: Path) -> tuple[Path | None, Config | None, str]:
    """The config that a run wrote into its work directory, the latest of a gated model if there are several.

    Returns:
        Path and config, each None if it is missing or cannot be read, and why.
    """
    written = sorted(folder.glob('*.py'), key=os.path.getmtime, reverse=True)
    logged = sorted(folder.glob('*/vis_data/config.py'), reverse=True)
    paths = written + logged
    other = None
    error = f'{folder} holds no config (NAME.py) of the run'
    for path in paths:
        try:
            config = load_config(path)
        except ValueError as reason:
            error = str(reason)
            continue
        if config.model.get('type') == GATED:
            return path, config, ''
        other = other or (path, config, '')
    if other:
        return other
    newest = paths[0] if paths else None
    return newest, None, error


def first_checkpoint(folder: Path, config: Config | None) -> str | None:
    """The checkpoint that a run started from, whatever it was resumed from or tested with since.

    Args:
        folder: Work directory of the run.
        config: The config that it wrote last, if there is one.
    """
    for scalars in scalar_files(folder):
        written = scalars.with_name('config.py')
        if written.is_file() and '"loss"' in scalars.read_text(errors='replace'):  # the first start that trained
            with suppress(ValueError):
                return load_config(written).get('load_from')
    return None if config is None else config.get('load_from')


def scalar_files(folder: Path) -> list[Path]:
    """The files of scalars in the work directory of a run, one per start, in order."""
    return sorted(folder.glob('*/vis_data/scalars.json'))


def read_scalars(folder: Path) -> tuple[Scalars, Scalars]:
    """Scalars of training and of validation, from all starts of a run; a later start replaces lines that it repeats."""
    train: Scalars = []
    val: Scalars = []
    for path in scalar_files(folder):
        for line in read_lines(path):
            if 'loss' in line and 'iter' in line:
                if train and line['iter'] <= train[-1]['iter']:  # the run was resumed
                    train = lines_before(line['iter'], train)
                    val = lines_before(line['iter'], val)
                train.append(line)
            elif line.keys() - NO_METRIC:
                reached = train[-1]['iter'] if train else 0
                val.append({'iter': reached, **line})
    return train, val


def lines_before(begin: int, lines: Scalars) -> Scalars:
    """The lines of the iterations before ``begin``."""
    return [line for line in lines if line['iter'] < begin]


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that ``last_checkpoint`` names, if it is there, or else the one with the highest number."""
    pointer = folder / 'last_checkpoint'
    if pointer.is_file():
        name = Path(pointer.read_text().strip()).name  # the folder may have been moved since
        if (folder / name).is_file():
            return folder / name
    last, highest = None, -1
    for path in folder.glob('*.pth'):
        found = NUMBERED.fullmatch(path.name)
        if found and int(found[2]) > highest:
            last, highest = path, int(found[2])
    return last


def saved_at(checkpoint: Path | None, unit: str) -> int:
    """The number in the name of a checkpoint; 0 if it counts another unit."""
    if checkpoint is None:
        return 0
    found = NUMBERED.fullmatch(checkpoint.name)
    if found and found[1] == unit:
        return int(found[2])
    return 0


def read_slim(folder: Path) -> tuple[Data | None, str]:
    """Contents of ``slim.json``, or None and the reason."""
    complete(folder)
    path = folder / 'slim.json'
    if not path.is_file():
        return None, f'{path} does not exist: write it with tools/slim.py, and name its folder with --slim'
    try:
        return read_report(path), ''
    except ValueError as error:
        return None, str(error)


def doubts_about(run: Run) -> list[str]:
    """What the user should know before trusting the page."""
    doubts = []
    if run.slim:
        made = run.slim['provenance']
        source = run.folder / made['checkpoint']
        doubts += run.slim['warnings']
        if source.is_file() and digest(source) != made['checkpoint_sha256']:
            doubts.append(f'the slim model in {run.slim_dir} was made from another checkpoint than {source}')
    progress = run.progress()
    if progress and progress.done < progress.total:
        done, total, unit = progress
        doubts.append(f'the run did not reach its end: {done} of {total} {unit} are on record')
    return doubts
