"""A rehearsal of slimming without data: does the model's own code follow when its layers become narrower?

``torch.export`` shows sizes as numbers, so a graph cannot tell whether a ``view`` takes its channel count from the
tensor at hand or from somewhere else. A narrower copy on the meta device tells.
"""

from __future__ import annotations

import copy
import os
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from mmprune_gates.channels.graph import ChannelGraph, Group
from mmprune_gates.slimming.surgery import slim_model

Run = Callable[[nn.Module], Any]
SLIMMING = os.path.dirname(__file__)
NOT_THE_MODEL = tuple(f'{folder}{os.sep}' for folder in (os.path.dirname(torch.__file__), os.path.dirname(SLIMMING)))
ERRORS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, NotImplementedError)


def stiff_groups(model: nn.Module, graph: ChannelGraph, run: Run) -> dict[str, str]:
    """The groups that cannot become narrower, since code of the model fixes their number of channels.

    Args:
        model: The model; it does not change.
        graph: Its channel graph.
        run: Runs a copy of the model on the meta device.

    Returns:
        Group name -> reason, which names the line that fails; empty if nothing does, or if the model cannot run on
        the meta device at all.
    """
    template = copy.deepcopy(model).to('meta')

    def failing_line(groups: Sequence[Group]) -> str:
        return failure(narrowed(template, graph, groups), run)

    free = [group for group in graph.free if group.block is None]
    if not failing_line(free) or failing_line([]):
        return {}
    reasons: dict[str, str] = {}
    pending = [free]
    while pending:
        groups = pending.pop()
        if line := failing_line(groups):
            if len(groups) == 1:
                reasons[groups[0].name] = f'{line} fixes its number of channels'
            else:
                pending += [groups[: len(groups) // 2], groups[len(groups) // 2 :]]
    rest = [group for group in free if group.name not in reasons]
    if line := failing_line(rest):  # some fail only together
        reasons |= {group.name: f'{line} fixes a number of channels' for group in rest}
    return reasons


def narrowed(model: nn.Module, graph: ChannelGraph, groups: Sequence[Group]) -> nn.Module:
    """A copy in which each of the groups has lost another number of channels."""
    model = copy.deepcopy(model)
    kept = {}
    for number, group in enumerate(groups):
        lost = 1 + number % max(1, group.size // 2)
        kept[group.name] = torch.arange(group.size) < group.size - lost
    slim_model(model, graph, kept)
    return model


def failure(model: nn.Module, run: Run) -> str:
    """``file:number`` of the innermost line of model code that raises; empty if none does."""
    try:
        with torch.no_grad():
            run(model)
    except ERRORS as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if not frame.filename.startswith(NOT_THE_MODEL)] or frames
        return f'{os.path.basename(own[-1].filename)}:{own[-1].lineno}'
    return ''
