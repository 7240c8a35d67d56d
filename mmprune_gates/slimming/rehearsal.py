"""A rehearsal of slimming without data: does the model's own code follow when its layers become narrower?

``torch.export`` shows sizes as numbers, so a graph cannot tell whether a ``view`` takes its channel count from the
tensor at hand or from somewhere else. A narrower copy on the meta device tells.
"""

from __future__ import annotations

import copy
import os
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmprune_gates.channels.graph import Block, ChannelGraph, Group, Kept
from mmprune_gates.slimming.surgery import slim_model

Run = Callable[[nn.Module], Any]
SLIMMING = os.path.dirname(__file__)
NOT_THE_MODEL = tuple(f'{folder}{os.sep}' for folder in (os.path.dirname(torch.__file__), os.path.dirname(SLIMMING)))
ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AssertionError, AttributeError)


def rehearse(model: nn.Module, graph: ChannelGraph, run: Run) -> ChannelGraph:
    """The graph less what the model's code cannot do without.

    Args:
        model: The model; it does not change.
        graph: Its channel graph.
        run: Runs a copy of the model on the meta device.

    Returns:
        The graph with groups frozen whose number of channels a line of code fixes, or whose block it cannot do without;
        the reason names the line. If the model cannot run on the meta device at all, no block can be emptied.
    """
    template = copy.deepcopy(model).to('meta')

    def attempt(kept: Kept) -> str:
        slim = copy.deepcopy(template)
        slim_model(slim, graph, kept)
        return failure(slim, run)

    channels = [group for group in graph.free if group.block is None]
    fewer = {group.name: less(group, number) for number, group in enumerate(channels)}
    stiff: dict[str, str] = {}
    if attempt(fewer):
        if attempt({}):
            return graph.without_emptying([group.name for group in channels])
        stiff = culprits(fewer, attempt)
    graph = graph.with_frozen({name: f'{line} fixes its number of channels' for name, line in stiff.items()})
    fewer = {name: mask for name, mask in fewer.items() if name not in stiff}

    def gone(groups: Iterable[Group]) -> dict[str, str]:
        return culprits(nothing_of(groups), lambda kept: attempt({**fewer, **kept}))

    needed: dict[str, str] = {}
    for blocks in levels(graph.blocks):
        names, lasts = {block.name for block in blocks}, {block.last for block in blocks}
        closing = [group for group in graph.free if group.block is not None and group.name in names]
        emptied = [group for group in graph.free if group.name in lasts]
        alone = {block.name for block in blocks if block.last is None}
        if attempt({**fewer, **nothing_of(emptied), **nothing_of(g for g in closing if g.name in alone)}):
            needed |= gone(closing)
            graph = graph.without_emptying(gone(emptied))
    return graph.with_frozen({name: f'{line} needs it' for name, line in needed.items()})


def less(group: Group, number: int) -> Tensor:
    """A mask that takes a number of channels from a group, another one from groups of other numbers."""
    return torch.arange(group.size) < group.size - 1 - number % max(1, group.size // 2)


def nothing_of(groups: Iterable[Group]) -> dict[str, Tensor]:
    """Masks that take all of groups."""
    return {group.name: torch.zeros(group.size, dtype=torch.bool) for group in groups}


def levels(blocks: Sequence[Block]) -> list[list[Block]]:
    """Blocks that are inside no other, then the others, which would not be missed if the first were gone."""
    inner = [any(other is not block and all(map(other.holds, block.modules)) for other in blocks) for block in blocks]
    return [[block for block, inside in zip(blocks, inner, strict=True) if inside is level] for level in (False, True)]


def culprits(masks: dict[str, Tensor], attempt: Callable[[Kept], str]) -> dict[str, str]:
    """The masks that fail, found by halving, and the line that each fails at."""
    found: dict[str, str] = {}
    if not masks or not attempt(masks):
        return {}
    pending = [list(masks)]
    while pending:
        names = pending.pop()
        if line := attempt({name: masks[name] for name in names}):
            if len(names) == 1:
                found[names[0]] = line
            else:
                pending += [names[: len(names) // 2], names[len(names) // 2 :]]
    rest = {name: mask for name, mask in masks.items() if name not in found}
    if rest and (line := attempt(rest)):
        found |= dict.fromkeys(rest, line)  # some fail only together
    return found


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
