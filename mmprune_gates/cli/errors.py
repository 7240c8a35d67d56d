"""Errors about the input as one message and exit code 1; all others keep their stack trace."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

PACKAGE = Path(__file__).resolve().parents[1]
ABOUT_INPUT = (ValueError, OSError, RuntimeError)  # where our own code raised them
UNKNOWN_NAMES = (KeyError, TypeError)  # of a config, where mmengine's registries raised them
REGISTRY = 'mmengine.registry'


def reports_errors(main: Callable[..., int]) -> Callable[..., int]:
    """Turn errors about the input into one message on stderr and exit code 1.

    Code is our own if it lies in the package, in the folder of ``main`` or below.
    """
    ours = (PACKAGE, Path(main.__code__.co_filename).resolve().parent)

    @functools.wraps(main)
    def guarded(argv: list[str] | None = None) -> int:
        try:
            return main(argv)
        except (*ABOUT_INPUT, *UNKNOWN_NAMES) as error:
            if not is_about_input(error, ours):
                raise
            text = error.args[0] if isinstance(error, KeyError) else error
            print(f'{Path(sys.argv[0]).name}: error: {text}', file=sys.stderr)
            return 1

    return guarded


def is_about_input(error: BaseException, ours: tuple[Path, ...]) -> bool:
    """Whether an error is about the input, by its type and by the code that raised it.

    Args:
        error: The error.
        ours: Folders of our own code.
    """
    frame = innermost(error.__traceback__).tb_frame
    path = Path(frame.f_code.co_filename).resolve()
    if isinstance(error, ABOUT_INPUT) and any(path.is_relative_to(folder) for folder in ours):
        return True
    return isinstance(error, UNKNOWN_NAMES) and frame.f_globals.get('__name__', '').startswith(REGISTRY)


def innermost(trace: TracebackType) -> TracebackType:
    """Where an error was raised."""
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace
