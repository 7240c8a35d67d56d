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
    *(RuntimeError, OSError, EOFError, LookupError, ValueError, TypeError, AttributeError),
    *(pickle.PickleError, struct.error),
)


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
        # torch's own text begins with advice to load unsafely; the paragraph after it names what was refused.
        paragraphs = [text for text in str(error).split('\n') if text and 'weights_only' not in text]
        reason = paragraphs[0] if paragraphs else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):
            reason = f'{reason.rstrip(".")}. Only tensors and plain values are loaded: anything else could run code'
        raise ValueError(f'checkpoint {path} is truncated or not a checkpoint: {reason}') from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f'checkpoint {path} holds a {type(checkpoint).__name__}, not a dictionary with a state_dict')
    return checkpoint if 'state_dict' in checkpoint else {'state_dict': checkpoint}


def load_weights(model: nn.Module, checkpoint: dict[str, Any], path: str | Path) -> None:
    """Load a checkpoint's state_dict; every key and shape must fit.

    Args:
        model: The model.
        checkpoint: What :func:`read_checkpoint` returned.
        path: Where it came from, for the message.

    Raises:
        ValueError: Keys that are missing or not expected, or shapes that differ; names the first few.
    """
    own, given = model.state_dict(), checkpoint['state_dict']
    given = {name.removeprefix('module.'): value for name, value in given.items()}
    missing = [f'{name} is missing' for name in own if name not in given]
    unexpected = [f'{name} is not expected' for name in given if name not in own]
    shapes = [
        f'{name} is {tuple(given[name].shape)}, expected {tuple(own[name].shape)}'
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    if problems := shapes + missing + unexpected:
        shown = '; '.join(problems[:4]) + (f'; and {len(problems) - 4} more' if len(problems) > 4 else '')
        raise ValueError(f'checkpoint {path} does not fit {type(model).__name__}: {shown}')
    model.load_state_dict(given, strict=False)  # all is there; some stock models refuse tables they make themselves
