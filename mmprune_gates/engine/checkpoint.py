"""Read checkpoints safely and load them completely, or say what does not fit."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmprune_gates.checks import listed
from mmprune_gates.engine.shrinking import reshape_model
from mmprune_gates.gates.attach import NAME

STATE = 'mmprune_gates'  # key of the pruner's state in a checkpoint
UNSAFE = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'  # with it set, torch refuses to be forced to load safely
# torch's texts begin with advice to load unsafely; the refused part follows.
REFUSED = re.compile(r'WeightsUnpickler error:\s*([^\n]+?)(?:\.? Please use |\n|$)')
ADVICE = re.compile(r'weights_only|can still be loaded|Weights only load failed|Check the documentation|file an issue')


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint, on the CPU, loaded with ``weights_only=True`` whatever the environment says.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is truncated, is no checkpoint, or holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {path} does not exist')
    try:
        check_sums(path)
        with safe_environment():
            checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # bytes that are no pickle can raise almost anything
        raise ValueError(f'checkpoint {path} is truncated or not a checkpoint: {reason(error)}') from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f'checkpoint {path} holds a {type(checkpoint).__name__}, not a dictionary with a state_dict')
    if 'state_dict' not in checkpoint:
        checkpoint = {'state_dict': checkpoint}
    check_state_dict(checkpoint['state_dict'], path)
    return checkpoint


def check_sums(path: Path) -> None:
    """Compare a file with its own checksums, which torch ignores.

    Raises:
        ValueError: It has changed since it was saved, or holds more than its own size.
    """
    if not zipfile.is_zipfile(path):
        return  # the old format has none
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise ValueError('it is compressed, which checkpoints are not')
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f'it is damaged: {damaged} has another checksum than when it was saved')


@contextmanager
def safe_environment() -> Iterator[None]:
    """Unset the variable that forbids safe loading, for a while."""
    value = os.environ.pop(UNSAFE, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[UNSAFE] = value


def reason(error: Exception) -> str:
    """Why torch refused a file, without torch's advice."""
    text = str(error)
    if 'TorchScript' in text:
        return 'it is a TorchScript archive, which holds code; save the state_dict of the model instead'
    found = REFUSED.search(text)
    lines = [line.strip() for line in text.split('\n') if line.strip() and not ADVICE.search(line)]
    told = [found[1]] if found else lines or ['torch cannot read it']
    if isinstance(error, pickle.UnpicklingError):
        return f'{told[0].rstrip(".")}. Only tensors and plain values are loaded: anything else could run code'
    return told[0]


def check_state_dict(state: Any, path: str | Path) -> None:
    """Refuse what cannot be a state_dict.

    Raises:
        ValueError: It is not a mapping from names.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f'checkpoint {path}: its state_dict is a {type(state).__name__}, not a dictionary of tensors')
    odd = [key for key in state if not isinstance(key, str)]
    if odd:
        raise ValueError(f'checkpoint {path}: its state_dict has the key {odd[0]!r}, which is not the name of a tensor')


def load_weights(model: nn.Module, checkpoint: dict[str, Any], path: str | Path) -> None:
    """Load a checkpoint's state_dict; every key and shape must fit, and every value must be finite.

    Args:
        model: The model.
        checkpoint: What :func:`read_checkpoint` returned.
        path: Its file, for the message.

    Raises:
        ValueError: Missing or unexpected keys, different shapes, or values that are not finite; names the first few.
    """
    reshape_model(model, checkpoint.get(STATE) or {})
    own, given = model.state_dict(), checkpoint['state_dict']
    given = {name.removeprefix('module.'): value for name, value in given.items()}
    shared = [name for name in own if name in given]
    missing = [f'{name} is missing' for name in own if name not in given]
    unexpected = [f'{name} is not expected' for name in given if name not in own]
    unlike = [f'{name} {found}' for name in shared if (found := difference(own[name], given[name]))]
    problems = unlike + missing + unexpected
    if problems:
        raise ValueError(
            f'checkpoint {path} does not fit {type(model).__name__}: {listed(problems, "; ")}. It seems to be of '
            f'{origin(unlike, missing, unexpected)}'
        )
    wild = [name for name in shared if is_finite(own[name]) and not is_finite(given[name])]
    if wild:
        raise ValueError(
            f'checkpoint {path} holds values that are not finite (NaN or infinite) in {listed(wild)}: the run that '
            'saved it had diverged; take an earlier checkpoint, or train with a lower learning rate'
        )
    model.load_state_dict(given, strict=False)  # all is there; some stock models refuse tables they make themselves


def origin(unlike: Sequence[str], missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """What a checkpoint that does not fit was probably saved from, by the tensors in which it differs, and the cure."""

    def has_gates(names: Sequence[str]) -> bool:
        return any(name.startswith(f'{NAME}.') for name in names)

    if has_gates(unlike):
        return 'a run with gates of another method or of other groups: give the config of that run'
    if has_gates(missing):
        return 'a run without gates: its weights are for load_from; give a checkpoint of the gated run here'
    if has_gates(unexpected):
        return 'a model with gates: give the config of that run, or slim it first'
    return 'another model, or one of other widths (slim.pth belongs to slim.py)'


def difference(own: Any, given: Any) -> str | None:
    """How a state_dict's entry differs from the model's own in type, shape, layout or dtype; None if it does not."""
    if not isinstance(own, Tensor):
        return None
    if not isinstance(given, Tensor):
        return f'is a {type(given).__name__}, not a tensor'
    if given.shape != own.shape:
        return f'is {tuple(given.shape)}, expected {tuple(own.shape)}'
    if given.layout != own.layout:
        return f'is {given.layout}, expected {own.layout}'
    if own.is_floating_point() and not given.is_floating_point():
        return f'is {given.dtype}, expected {own.dtype}'
    return None


def is_finite(value: Any) -> bool:
    """Whether no value of an entry of a state_dict is NaN or infinite."""
    return not isinstance(value, Tensor) or bool(value.isfinite().all())
