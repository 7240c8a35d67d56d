"""Ops and models of torch in eager mode."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from mmprune_gates.budget.latency_table import Target
from mmprune_gates.engine.forwards import inference_forward
from mmprune_gates.timing.clock import Call, clock_of, in_turn
from mmprune_gates.timing.narrowing import Narrowed

BUDGET_S = 0.15  # seconds for one op at one width
REPEATS = (3, 15)  # at least and at most
IN_A_ROW = 10  # calls on a GPU between two readings of the clock, which wait for it
# What mallopt(3) calls M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_MAX, and values with which glibc keeps memory.
KEEP = ((-1, 2**31 - 1), (-2, 2**26), (-4, 0))


class Eager:
    """Times ops and prepares models on a device.

    Args:
        target: Device and threads.
    """

    def __init__(self, target: Target) -> None:
        self.device = target.device
        self.in_a_row = 1 if target.device == 'cpu' else IN_A_ROW
        self.now = clock_of(target.device, target.threads)
        torch.set_num_threads(target.threads)
        if target.device == 'cpu':
            keep_memory()

    @torch.inference_mode()
    def ms(self, ops: Sequence[Narrowed]) -> list[float]:
        """Median milliseconds of each op, measured in turn."""
        return in_turn([partial(self.once, op) for op in ops], REPEATS, BUDGET_S)

    def once(self, op: Narrowed) -> float:
        """Seconds of one call on tensors that have just been written, as those of a model are."""
        tensors = [torch.ones(shape, device=self.device) for shape in op.shapes]
        args, kwargs = op.arguments(tensors)
        begin = self.now()
        for _ in range(self.in_a_row):
            result = op.work.target(*args, **kwargs)
        took = self.now() - begin
        del result
        return took / self.in_a_row

    def call(self, model: nn.Module, images: Tensor) -> Call:
        """A function that runs a model on (N, C, H, W) images."""
        model, images = model.to(self.device).eval(), images.to(self.device)

        @torch.inference_mode()
        def run() -> None:
            inference_forward(model, images)

        return run


def keep_memory() -> None:
    """Let glibc keep freed memory for the next call, as other allocators do; nothing changes without glibc.

    By default it returns large pieces to the system, and every call spends up to a third of its time on having them
    mapped again, in steps that do not depend smoothly on widths.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None) if sys.platform == 'linux' else None
    if mallopt is not None:
        for option, value in KEEP:
            mallopt(option, value)
