"""The clock that latencies are read from."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch

Call = Callable[[], None]
Clock = Callable[[], float]
REPEATS = (5, 40)  # at least and at most
ENOUGH_MS = 300  # of one call, after which it is made no more often than at least


def clock_of(device: str, threads: int) -> Clock:
    """Seconds, from a clock that other processes disturb as little as possible.

    On one CPU thread the time that the process computes is what it takes on a machine that does nothing else.
    """
    if device != 'cpu':

        def synchronised() -> float:
            torch.cuda.synchronize(device)
            return time.perf_counter()

        return synchronised
    return time.process_time if threads == 1 else time.perf_counter


def medians(calls: Sequence[Call], now: Clock) -> list[float]:
    """Median milliseconds of each of several calls, made in turn, after a warm-up; short ones are made more often.

    Args:
        calls: The calls.
        now: The clock.
    """
    took: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for repeat in range(REPEATS[1]):
        for call, own in zip(calls, took, strict=True):
            if repeat >= REPEATS[0] and sum(own) > ENOUGH_MS:
                continue
            begin = now()
            call()
            own.append(1e3 * (now() - begin))
    return [median(own) for own in took]
