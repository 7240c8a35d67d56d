"""What the work directory of a run says: config, gates, scalars, checkpoints, and the slim model made from it."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmprune_gates.cli.arguments import load_config
from mmprune_gates.engine.model_config import GATED, is_ours
from mmprune_gates.engine.record_hook import NAME, read_history

METRICS = ('mIoU', 'accuracy/top1')  # the first that there is
NO_METRIC = {'step', 'iter', 'epoch', 'time', 'data_time', 'memory', 'lr'}
NUMBERED = re.compile(r'(iter|epoch)_(\d+)\.pth')


class Absent(Exception):
    """Something that a section needs is not there; the text says what, and what to do."""


@dataclass(frozen=True)
class Run:
    """A finished or killed run.

    Attributes:
        folder: Its work directory.
        config_path: The config that the run wrote there; None if there is none.
        config: What it holds; None if it cannot be read.
        config_error: Why ``config`` is None.
        history: Lines of ``gates.jsonl``.
        train: Scalars of the training iterations, each with ``iter``.
        val: Scalars of the validations; ``iter`` is where in training they happened.
        checkpoint: The last one; None if there is none.
        slim_dir: Where the slim model is looked for.
        slim: Contents of its ``slim.json``; None if there is none.
        slim_error: Why ``slim`` is None.
    """

    folder: Path
    config_path: Path | None
    config: Config | None
    config_error: str
    history: list[dict[str, Any]]
    train: list[dict[str, float]]
    val: list[dict[str, float]]
    checkpoint: Path | None
    slim_dir: Path
    slim: dict[str, Any] | None
    slim_error: str
    doubts: list[str] = field(default_factory=list)

    @property
    def hook(self) -> dict[str, Any]:
        """Config of the hook that prunes; empty if the config is not known or has none."""
        hooks = (self.config.get('custom_hooks') or []) if self.config is not None else []
        pruning = [hook for hook in hooks if is_ours(hook) and 'target_macs' in hook]
        return dict(pruning[0]) if pruning else {}

    @property
    def target(self) -> float | None:
        """MACs to keep / MACs of the whole model, if it is known."""
        return self.hook.get('target_macs')

    @property
    def metric(self) -> str | None:
        """Name of the validation metric to show."""
        names = [name for name in (self.val[-1] if self.val else {}) if name not in NO_METRIC]
        return next((name for name in METRICS if name in names), next(iter(names), None))

    def measured(self) -> list[tuple[int, float]]:
        """Iteration and metric of each validation."""
        return [(line['iter'], line[self.metric]) for line in self.val if self.metric in line]

    def need_config(self) -> Config:
        """The config.

        Raises:
            Absent: There is none, or it is not that of a gated run.
        """
        if self.config is None:
            raise Absent(self.config_error)
        if self.config.model.get('type') != GATED:
            raise Absent(f'{self.config_path}: model.type is {self.config.model.get("type")!r}, not {GATED!r}')
        return self.config

    def progress(self) -> tuple[int, int, str] | None:
        """How far the run came, how far it was to go, and the unit of both; None if it is not known."""
        length = (self.config.get('train_cfg') or {}) if self.config is not None else {}
        if length.get('max_iters'):
            seen = [line['iter'] for line in (*self.history, *self.train)]
            return max([*seen, saved_at(self.checkpoint, 'iter')]), length['max_iters'], 'iterations'
        if length.get('max_epochs'):
            begun = [line['epoch'] - 1 for line in self.train if 'epoch' in line]
            validated = [line['step'] for line in self.val if 'step' in line]
            return max([*begun, *validated, saved_at(self.checkpoint, 'epoch')]), length['max_epochs'], 'epochs'
        return None


def read_run(folder: str | Path, slim_dir: str | Path | None = None) -> Run:
    """Read what there is.

    Args:
        folder: Work directory of the run.
        slim_dir: Folder of the slim model; by default ``slim`` in the work directory.

    Raises:
        ValueError: The folder holds nothing of a run.
    """
    folder = Path(folder)
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


def find_config(folder: Path) -> tuple[Path | None, Config | None, str]:
    """The config that a run wrote into its work directory, the latest of a gated model if there are several.

    Returns:
        Path and config, each None if there is none or it cannot be read, and why.
    """
    paths = sorted(folder.glob('*.py'), key=lambda path: path.stat().st_mtime, reverse=True)
    paths += sorted(folder.glob('*/vis_data/config.py'), reverse=True)
    others: list[tuple[Path, Config]] = []
    error = f'{folder} holds no config (NAME.py) of the run'
    for path in paths:
        try:
            config = load_config(argparse.Namespace(config=str(path), cfg_options={}))
        except Exception as reason:  # a config is code
            error = str(reason) if isinstance(reason, ValueError) else f'{path} cannot be read: {reason!r}'
            continue
        if config.model.get('type') == GATED:
            return path, config, ''
        others.append((path, config))
    if others:
        return *others[0], ''
    return (paths[0] if paths else None), None, error


def read_scalars(folder: Path) -> tuple[list[dict], list[dict]]:
    """Scalars of training and of validation, from all starts of a run; a later start replaces what it repeats."""
    train: list[dict] = []
    val: list[dict] = []
    for path in sorted(folder.glob('*/vis_data/scalars.json')):
        lines = [line for line in map(parsed, path.read_text(errors='replace').splitlines()) if line]
        begin = next((line['iter'] for line in lines if 'iter' in line), None)
        if begin is not None:
            train = [line for line in train if line['iter'] < begin]
            val = [line for line in val if line['iter'] < begin]
        for line in lines:
            if 'loss' in line and 'iter' in line:
                train.append(line)
            elif line.keys() - NO_METRIC:
                val.append({'iter': train[-1]['iter'] if train else 0, **line})
    return train, val


def parsed(text: str) -> dict[str, Any] | None:
    """A line of JSON as a dictionary; None if it is cut or is none."""
    try:
        line = json.loads(text)
    except json.JSONDecodeError:
        return None
    return line if isinstance(line, dict) else None


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that ``last_checkpoint`` names, if it is there, or else the one with the highest number."""
    pointer = folder / 'last_checkpoint'
    if pointer.is_file():
        named = folder / Path(pointer.read_text().strip()).name  # the folder may have been moved since
        if named.is_file():
            return named
    numbered = [path for path in folder.glob('*.pth') if NUMBERED.fullmatch(path.name)]
    return max(numbered, key=lambda path: int(NUMBERED.fullmatch(path.name)[2]), default=None)


def saved_at(checkpoint: Path | None, unit: str) -> int:
    """The number in the name of a checkpoint, 0 if it counts something else."""
    found = NUMBERED.fullmatch(checkpoint.name) if checkpoint else None
    return int(found[2]) if found and found[1] == unit else 0


def read_slim(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """Contents of ``slim.json``, or None and why."""
    path = folder / 'slim.json'
    if not path.is_file():
        return None, f'{path} does not exist: write it with tools/slim.py, and name its folder with --slim'
    report = parsed(path.read_text(errors='replace').replace('\n', ' '))
    if report is None or not {'macs', 'params', 'groups', 'blocks', 'provenance'} <= report.keys():
        return None, f'{path} is no report of tools/slim.py, or is cut: write it again'
    return report, ''


def doubts_about(run: Run) -> list[str]:
    """What a person should know before believing the page."""
    doubts = list(run.slim.get('warnings', [])) if run.slim else []
    if run.slim:
        source = run.folder / run.slim['provenance']['checkpoint']
        if source.is_file() and digest(source) != run.slim['provenance']['checkpoint_sha256']:
            doubts.append(f'the slim model in {run.slim_dir} was made from another checkpoint than {source}')
    progress = run.progress()
    if progress and progress[0] < progress[1]:
        doubts.append(f'the run did not reach its end: {progress[0]} of {progress[1]} {progress[2]} are on record')
    return doubts


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
