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
ABOUT_INPUT = (ValueError, RuntimeError)  # if our own code raised them
REGISTRY, LOOPS = 'mmengine.registry', 'mmengine.runner.loops'
LIBRARIES = {'torch', 'numpy', *sys.stdlib_module_names} - {'__main__'}
INTERRUPTED = 130  # exit code, as shells have it
LONGEST = 1000  # characters of a message that is not our own
# Remedies by the text of an error. The first errors are raised by training itself, far from their cause.
HINTS = (
    (r'need at least one array to concatenate', f'the data set has no sample: {NO_SAMPLE}'),
    (r'Target -?\d+ is out of bounds', 'a label of the data is not below num_classes of the head that reads it'),
    (
        r'device-side assert',
        'on a GPU: usually a label of the data is not below num_classes of the head that reads it; with '
        'CUDA_VISIBLE_DEVICES= set to nothing the run fails on the CPU, with the cause',
    ),
    (r'dim of value must be 2 or 3', 'mmsegmentation cannot load a label map one pixel wide or high: larger images'),
    (r'more than 1 value per channel', 'batch norm cannot train on a single value: larger images, or a larger batch'),
    (
        r'size mismatch|cannot be multiplied|to have \d+ channels|should contain \d+ elements|must match the size',
        'the widths in the config do not fit each other, or the input: slim.py may have been edited',
    ),
    (r'out of memory|not enough memory', 'a smaller batch or input needs less'),
)
ELSEWHERE = 'choose a folder that can be written to'
DISK = {
    errno.ENOSPC: 'the disk is full: free some space, or choose another folder',
    errno.EDQUOT: 'the quota of the disk is used up: free some space, or choose another folder',
    errno.EFBIG: 'files may not become that large here (ulimit -f): choose another folder',
    errno.EROFS: ELSEWHERE,
    errno.EACCES: ELSEWHERE,
    errno.EPERM: ELSEWHERE,
}

Frames = list[tuple[FrameType, int]]  # with line numbers, from where an error was caught to where it was raised
Folders = tuple[Path, ...]
Main = Callable[..., int]


def reports_errors(main: Main) -> Main:
    """Turn errors into one message on stderr and exit code 1, after a stack trace if they are not about the input.

    Code is our own if it lies in the package, in the folder of ``main`` or below. ``python -X dev`` shows every trace.
    """
    ours = (PACKAGE, Path(main.__code__.co_filename).resolve().parent)

    @functools.wraps(main)
    def guarded(argv: list[str] | None = None) -> int:
        told = logging.raiseExceptions
        logging.raiseExceptions = False  # else a log file on a full disk prints traces
        program = Path(sys.argv[0]).name
        try:
            return main(argv)
        except KeyboardInterrupt:
            print(f'{program}: interrupted', file=sys.stderr)
            return INTERRUPTED
        except Exception as error:
            frames = list(traceback.walk_tb(error.__traceback__))
            if sys.flags.dev_mode or not is_about_input(error, frames, ours):
                traceback.print_exception(error)
            print(f'{program}: error: {message(error, frames, ours)}', file=sys.stderr)
            return 1
        finally:
            logging.raiseExceptions = told

    return guarded


def is_about_input(error: BaseException, frames: Frames, ours: Folders) -> bool:
    """Whether an error is about the input, by its type and by the code that raised it.

    It is, if it is about files, if our own code refused something, or if code that we did not call directly failed
    before a loop ran, while something was built from the config.

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
    for frame, _ in frames:
        if module_of(frame) == LOOPS and frame.f_code.co_name != '__init__':
            return False
    return True


def module_of(frame: FrameType) -> str:
    """Name of the module that a frame belongs to."""
    return frame.f_globals.get('__name__', '')


def culprit(frames: Frames) -> tuple[FrameType, int]:
    """The innermost frame outside torch, numpy and the standard library, which are rarely to blame."""
    for frame, line in reversed(frames):
        package = module_of(frame).partition('.')[0]
        if package not in LIBRARIES:
            return frame, line
    return frames[-1]


def is_ours(frame: FrameType, ours: Folders) -> bool:
    """Whether a frame belongs to our own code."""
    path = Path(frame.f_code.co_filename).resolve()
    return any(path.is_relative_to(folder) for folder in ours)


def message(error: BaseException, frames: Frames, ours: Folders) -> str:
    """The message for the user: our own texts as they are; for other code also what was being built, and the line."""
    text = str(error)
    if isinstance(error, KeyError) and error.args:
        text = str(error.args[0])  # str(error) would put it in quotes
    if isinstance(error, OSError):
        return disk_message(error, text, frames)
    if isinstance(error, ABOUT_INPUT) and is_ours(frames[-1][0], ours):
        return text
    if 'Traceback (most recent call last)' in text:  # from a worker that loads data
        text = text.strip().splitlines()[-1]
    if len(text) > LONGEST:
        text = f'{text[:LONGEST]}...'
    kind = type(error).__name__
    told = f'{being_built(frames)}{kind}: {text}\n({place_of(frames)})'
    for pattern, hint in HINTS:
        if re.search(pattern, text):
            return f'{told}\n{hint}'
    return told


def disk_message(error: OSError, text: str, frames: Frames) -> str:
    """The message of an error about files, with a remedy if one is known."""
    if not error.filename:
        text = f'{text} ({place_of(frames)})'
    if error.errno in DISK:
        text = f'{text}; {DISK[error.errno]}'
    return text


def place_of(frames: Frames) -> str:
    """File and line of the code that an error came from."""
    frame, line = culprit(frames)
    path = Path(frame.f_code.co_filename)
    end = '/'.join(path.parts[-3:])
    return f'{end}, line {line}'


def being_built(frames: Frames) -> str:
    """Which part of a config mmengine was building; empty if none."""
    for frame, _ in reversed(frames):
        config = frame.f_locals.get('cfg')
        if module_of(frame).startswith(REGISTRY) and isinstance(config, dict) and 'type' in config:
            kind = config['type']
            return f'{getattr(kind, "__name__", kind)} could not be built from its config: '
    return ''
