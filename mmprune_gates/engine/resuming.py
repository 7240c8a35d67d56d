"""The checkpoint that a run resumes from."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmengine.logging import print_log

from mmprune_gates.checks import Rule, checked, is_whole
from mmprune_gates.engine.checkpoint import read_checkpoint

POINTER = 'last_checkpoint'  # holds the path of the last checkpoint; written after it
COUNTED = Rule('a whole number that is not negative', lambda value: is_whole(value) and value >= 0)
PARTS = {'meta': Mapping, 'message_hub': Mapping}  # of a checkpoint of a run, besides its weights


def latest_checkpoint(folder: str | Path) -> str | None:
    """The last checkpoint of a work folder; None if there is none.

    After a run was killed while writing a checkpoint, that is the checkpoint before. A run killed while noting which is
    the last leaves an empty note, and one killed after removing the checkpoint before, a note of a file that is gone;
    then the newest complete checkpoint in the folder is taken.

    Raises:
        ValueError: The note names no checkpoint that is there, and there is no other complete one.
    """
    note = Path(folder, POINTER)
    if not note.is_file():
        print_log(f'{note} does not exist: nothing to resume, training starts afresh')
        return None
    path = note.read_text(errors='replace').strip().strip('\0')
    if '://' in path or (path and Path(path).is_file()):
        return path
    moved = note.parent / Path(path).name  # the folder may have moved since
    if path and moved.is_file():
        return str(moved)
    said = (
        f'{note} names {path}, which is not there' if path else f'{note} is empty: a run was killed while it wrote it'
    )
    for found in sorted(note.parent.glob('*.pth'), key=os.path.getmtime, reverse=True):
        with suppress(OSError, ValueError):
            if 'optimizer' not in read_run(found):
                continue  # such as the best one
            print_log(f'{said}. Resuming from the newest whole checkpoint, {found}', level=logging.WARNING)
            return str(found)
    raise ValueError(
        f'{said}, and there is no whole checkpoint beside it: name one with --resume CKPT, or delete the file to start '
        'afresh'
    )


def read_run(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint that a run can resume from.

    Raises:
        OSError, ValueError: It is missing, broken, or not from a training run.
    """
    checkpoint = read_checkpoint(path)
    absent = [key for key in PARTS if key not in checkpoint]
    if absent:
        raise ValueError(
            f'checkpoint {path} holds weights only (no {", ".join(absent)}), so there is no run to resume; '
            f'start from its weights with --cfg-options load_from={path}'
        )
    for key, kind in PARTS.items():
        if not isinstance(checkpoint[key], kind):
            raise ValueError(f'checkpoint {path}: its {key} is a {type(checkpoint[key]).__name__}, not a dictionary')
    for key in ('iter', 'epoch'):
        checked(f'checkpoint {path}: meta[{key!r}]', checkpoint['meta'].get(key), COUNTED)
    return checkpoint
