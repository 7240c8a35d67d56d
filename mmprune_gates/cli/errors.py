"""Every error as one message and exit code 1; the stack trace only where the input is not to blame."""

from __future__ import annotations

import errno
import functools
import logging
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from mmprune_gates.engine.datasets import NO_SAMPLE

PACKAGE = Path(__file__).resolve().parents[1]
ABOUT_INPUT = (ValueError, RuntimeError)  # where our own code raised them
REGISTRY, LOOPS = 'mmengine.registry', 'mmengine.runner.loops'
LIBRARIES = {'torch', 'numpy', *sys.stdlib_module_names} - {'__main__'}
LONGEST = 1000  # characters of a message that is not our own
# What to do, by what an error says. The first are raised by training itself, far from what caused them.
HINTS = (
    (r'need at least one array to concatenate', f'the data set has no sample: {NO_SAMPLE}'),
    (r'Target -?\d+ is out of bounds', 'a label of the data is not below num_classes of the head that reads it'),
    (r'more than 1 value per channel', 'batch norm cannot train on a single value: larger images, or a larger batch'),
    (
        r'size mismatch|cannot be multiplied|to have \d+ channels|should contain \d+ elements|must match the size',
        'the widths in the config do not fit each other, or the input: slim.py may have been edited',
    ),
    (r'out of memory|not enough memory', 'a smaller batch or input needs less'),
)
DISK = {
    errno.ENOSPC: 'the disk is full: free some space, or choose another folder',
    errno.EDQUOT: 'the quota of the disk is used up: free some space, or choose another folder',
    errno.EFBIG: 'files may not become that large here (ulimit -f): choose another folder',
    errno.EROFS: 'choose a folder that can be written to',
    errno.EACCES: 'choose a folder that can be written to',
    errno.EPERM: 'choose a folder that can be written to',
}


def reports_errors(main: Callable[..., int]) -> Callable[..., int]:
    """Turn errors into one message on stderr and exit code 1; those not about the input have a stack trace before it.

    Code is our own if it lies in the package, in the folder of ``main`` or below. ``python -X dev`` shows every trace.
    """
    ours = (PACKAGE, Path(main.__code__.co_filename).resolve().parent)

    @functools.wraps(main)
    def guarded(argv: list[str] | None = None) -> int:
        told, logging.raiseExceptions = logging.raiseExceptions, False  # a log file on a full disk has traces
        try:
            return main(argv)
        except Exception as error:
            frames = frames_of(error)
            if sys.flags.dev_mode or not is_about_input(error, frames, ours):
                traceback.print_exception(error)
            print(f'{Path(sys.argv[0]).name}: error: {message(error, frames, ours)}', file=sys.stderr)
            return 1
        finally:
            logging.raiseExceptions = told

    return guarded


def frames_of(error: BaseException) -> list[tuple[FrameType, int]]:
    """Frames and line numbers from where an error was caught to where it was raised."""
    return list(traceback.walk_tb(error.__traceback__))


def is_about_input(error: BaseException, frames: list[tuple[FrameType, int]], ours: tuple[Path, ...]) -> bool:
    """Whether an error is about the input, by its type and by the code that raised it.

    It is, if it is about files; if our own code has refused something; if code that we have not called directly has
    failed before a loop ran, while something was built from the config.

    Args:
        error: The error.
        frames: Its frames.
        ours: Folders of our own code.
    """
    if isinstance(error, OSError):
        return True
    if is_ours(frames[-1][0], ours):
        return isinstance(error, ABOUT_INPUT)
    if is_ours(culprit(frames)[0], ours):
        return False
    return not any(module_of(frame) == LOOPS and frame.f_code.co_name != '__init__' for frame, _ in frames)


def module_of(frame: FrameType) -> str:
    """Name of the module that a frame belongs to."""
    return frame.f_globals.get('__name__', '')


def culprit(frames: list[tuple[FrameType, int]]) -> tuple[FrameType, int]:
    """The innermost frame outside torch and the standard library, which do as they are told."""
    others = [found for found in frames if module_of(found[0]).partition('.')[0] not in LIBRARIES]
    return others[-1] if others else frames[-1]


def is_ours(frame: FrameType, ours: tuple[Path, ...]) -> bool:
    """Whether a frame is one of our own code."""
    path = Path(frame.f_code.co_filename).resolve()
    return any(path.is_relative_to(folder) for folder in ours)


def message(error: BaseException, frames: list[tuple[FrameType, int]], ours: tuple[Path, ...]) -> str:
    """What to tell a person: our own words as they are; of other code also what was built, and the line."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if isinstance(error, OSError):
        told = [text if error.filename else f'{text} ({place_of(frames)})', DISK.get(error.errno)]
        return '; '.join(filter(None, told))
    if isinstance(error, ABOUT_INPUT) and is_ours(frames[-1][0], ours):
        return text
    if 'Traceback (most recent call last)' in text:  # of a worker that loads data
        text = text.strip().splitlines()[-1]
    text = text if len(text) <= LONGEST else f'{text[:LONGEST]}...'
    hints = [hint for pattern, hint in HINTS if re.search(pattern, text)]
    told = [f'{being_built(frames)}{type(error).__name__}: {text}', f'({place_of(frames)})', *hints[:1]]
    return '\n'.join(told)


def place_of(frames: list[tuple[FrameType, int]]) -> str:
    """File and line of the code that an error came from."""
    frame, line = culprit(frames)
    return f'{"/".join(Path(frame.f_code.co_filename).parts[-3:])}, line {line}'


def being_built(frames: list[tuple[FrameType, int]]) -> str:
    """Which part of a config mmengine was building; empty if none."""
    for frame, _ in reversed(frames):
        config = frame.f_locals.get('cfg')
        if module_of(frame).startswith(REGISTRY) and isinstance(config, dict) and 'type' in config:
            kind = config['type']
            return f'{getattr(kind, "__name__", kind)} could not be built from its config: '
    return ''
