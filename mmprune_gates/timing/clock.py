"""The clock for latencies."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch

Call = Callable[[], None]
Clock = Callable[[], float]
REPEATS = (3, 40)  # at least and at most
ENOUGH_MS = 300  # total time of a call, after which it is repeated only the least number of times


def clock_of(device: str, threads: int) -> Clock:
    """A clock in seconds that other processes disturb as little as possible.

    On one CPU thread it counts processor time, which is the time on a machine that does nothing else.
    """
    if device != 'cpu':

        def synchronised() -> float:
            torch.cuda.synchronize(device)
            return time.perf_counter()

        return synchronised
    return time.process_time if threads == 1 else time.perf_counter


def medians(calls: Sequence[Call], now: Clock) -> list[float]:
    """Median milliseconds of several calls, made in turn, after a warm-up; short calls are repeated more often.

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
