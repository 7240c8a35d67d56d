"""Read checkpoints safely and load them completely, or say what does not fit."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import torch
from torch import nn

# What torch.load raises for a file that it cannot read: bytes that are no pickle end in any of these.
UNREADABLE = (
    RuntimeError,
    OSError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    pickle.PickleError,
    struct.error,
)
SHOWN = 4  # problems that a message names


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint, on the CPU, loaded with ``weights_only=True``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is truncated, is no checkpoint, or holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {path} does not exist')
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except UNREADABLE as error:
        raise ValueError(f'checkpoint {path} is truncated or not a checkpoint: {reason(error)}') from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f'checkpoint {path} holds a {type(checkpoint).__name__}, not a dictionary with a state_dict')
    if 'state_dict' not in checkpoint:
        return {'state_dict': checkpoint}
    return checkpoint


def reason(error: Exception) -> str:
    """Why torch could not read a file."""
    # torch's own text begins with advice to load unsafely; the paragraph after it names what was refused.
    paragraphs = [text for text in str(error).split('\n') if text and 'weights_only' not in text]
    refused = paragraphs[0] if paragraphs else type(error).__name__
    if not isinstance(error, pickle.UnpicklingError):
        return refused
    return f'{refused.rstrip(".")}. Only tensors and plain values are loaded: anything else could run code'


def load_weights(model: nn.Module, checkpoint: dict[str, Any], path: str | Path) -> None:
    """Load a checkpoint's state_dict; every key and shape must fit.

    Args:
        model: The model.
        checkpoint: What :func:`read_checkpoint` returned.
        path: Where it came from, for the message.

    Raises:
        ValueError: Keys that are missing or not expected, or shapes that differ; names the first few.
    """
    own = model.state_dict()
    given = {name.removeprefix('module.'): value for name, value in checkpoint['state_dict'].items()}
    shapes, missing = [], []
    for name, value in own.items():
        if name not in given:
            missing.append(f'{name} is missing')
        elif given[name].shape != value.shape:
            shapes.append(f'{name} is {tuple(given[name].shape)}, expected {tuple(value.shape)}')
    unexpected = [f'{name} is not expected' for name in given if name not in own]
    problems = shapes + missing + unexpected
    if problems:
        shown = '; '.join(problems[:SHOWN])
        if len(problems) > SHOWN:
            shown += f'; and {len(problems) - SHOWN} more'
        raise ValueError(f'checkpoint {path} does not fit {type(model).__name__}: {shown}')
    model.load_state_dict(given, strict=False)  # all is there; some stock models refuse tables they make themselves
