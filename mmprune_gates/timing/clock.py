"""The clock for latencies."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import torch

Call = Callable[[], None]
Clock = Callable[[], float]
REPEATS = (3, 40)  # at least and at most
ENOUGH_S = 0.3  # total time of a call, after which it is repeated only the least number of times


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

    def seconds(call: Call) -> float:
        begin = now()
        call()
        return now() - begin

    return in_turn([partial(seconds, call) for call in calls], REPEATS, ENOUGH_S)


def in_turn(timed: Sequence[Callable[[], float]], repeats: tuple[int, int], enough_s: float) -> list[float]:
    """Median milliseconds of several calls that time themselves, made in turn, after a warm-up.

    Args:
        timed: Functions that return the seconds of one call.
        repeats: How often each is called, at least and at most.
        enough_s: Total seconds of a function, after which it is called only the least number of times.
    """
    took: list[list[float]] = [[] for _ in timed]
    for call in timed:
        call()
    for repeat in range(repeats[1]):
        for call, own in zip(timed, took, strict=True):
            if repeat < repeats[0] or sum(own) <= enough_s:
                own.append(call())
    return [1e3 * median(own) for own in took]
