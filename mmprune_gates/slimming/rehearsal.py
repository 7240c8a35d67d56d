"""A rehearsal of slimming: does the model's own code follow when its layers become narrower?

``torch.export`` shows sizes as numbers, so a graph cannot tell whether a ``view`` takes its channel count from the
tensor at hand or from somewhere else, nor whether a factor was computed from a width. A narrower copy tells: it must
run, give outputs of the same shapes, and compute with the same numbers. It runs on the meta device, without data or
arithmetic, wherever the model can.
"""

from __future__ import annotations

import copy
import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mmprune_gates.channels.calls import Forward, Options, first_sample, on_meta, run
from mmprune_gates.channels.graph import Block, ChannelGraph, Group, Kept
from mmprune_gates.slimming.numbers import Deviation, Numbers, SameNumbers
from mmprune_gates.slimming.surgery import slim_model

SLIMMING = os.path.dirname(__file__)
NOT_THE_MODEL = tuple(f'{folder}{os.sep}' for folder in (os.path.dirname(torch.__file__), os.path.dirname(SLIMMING)))
ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AssertionError, AttributeError, NotImplementedError)


class Failure(NamedTuple):
    """``file:number`` of the line of model code that a narrower copy fails at, and what the line does."""

    line: str
    how: str


@dataclass(frozen=True)
class Stage:
    """One way to run a model's passes.

    Attributes:
        model: A copy of the model, on the meta device or where the model is.
        options: What it is called with.
        modes: (forward, whether in training mode) of each pass.
    """

    model: nn.Module
    options: Options
    modes: tuple[tuple[Forward | None, bool], ...]

    def run(self, model: nn.Module) -> list[torch.Size]:
        """Shapes of all outputs of a model that takes the place of the copy."""
        found = []
        eager = torch.compiler.set_stance('force_eager')  # parts that are compiled, and torch.cond
        with eager, torch.random.fork_rng(devices=[]), torch.no_grad():
            for forward, training in self.modes:
                torch.manual_seed(0)
                options = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, self.options)
                model.train(training)  # not all models return themselves
                found += [tensor.shape for tensor in run(model, forward, options)]
        return found


def stages(model: nn.Module, passes: Sequence[Forward | None], options: Options) -> Iterator[Stage]:
    """All ways to run a model, the cheapest and most telling first.

    One sample rather than several: a ``view`` to the full width makes one sample of two that have half of it.
    """
    one = first_sample(options)
    for without_data, inputs, training in product((True, False), (one, options), (False, True)[: len(passes)]):
        template = copied_without_data(model) if without_data else copy.deepcopy(model)
        inputs = on_meta(inputs) if without_data else inputs
        modes = [(forward, training and number > 0) for number, forward in enumerate(passes)]
        yield Stage(template, inputs, tuple(modes))


def copied_without_data(model: nn.Module) -> nn.Module:
    """A copy on the meta device; nothing large is copied on the way."""
    tensors = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = tensor.detach().to('meta')
        is_parameter = isinstance(tensor, nn.Parameter)
        tensors[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
    return copy.deepcopy(model, tensors)


def rehearse(model: nn.Module, graph: ChannelGraph, passes: Sequence[Forward | None], options: Options) -> ChannelGraph:
    """The graph less what the model's code cannot do without.

    Args:
        model: The model; it does not change.
        graph: Its channel graph.
        passes: ``forward(model, *args, **kwargs)`` of inference (None for a plain call), then that of training, if any.
        options: Positional and keyword arguments of a call.

    Returns:
        The graph with groups frozen whose number of channels a line of code fixes or computes with, or whose block it
        cannot do without; the reason names the line.

    Raises:
        RuntimeError: The whole model does not run.
    """
    stage, shapes, numbers = first_that_runs(model, passes, options)

    def attempt(kept: Kept, same_numbers: bool = False) -> Failure | None:
        slim = copy.deepcopy(stage.model)
        slim_model(slim, graph, kept)
        return failure(lambda: stage.run(slim), shapes, numbers if same_numbers else None)

    def narrow(kept: Kept) -> Failure | None:
        return attempt(kept, same_numbers=True)

    channels = [group for group in graph.free if group.block is None]
    fewer = {group.name: less(group, number) for number, group in enumerate(channels)}
    stiff = culprits(fewer, narrow)
    graph = graph.with_frozen({name: f'{line} {how} its number of channels' for name, (line, how) in stiff.items()})
    fewer = {name: mask for name, mask in fewer.items() if name not in stiff}

    def gone(groups: Iterable[Group]) -> dict[str, Failure]:
        return culprits(nothing_of(groups), lambda kept: attempt({**fewer, **kept}))

    needed: dict[str, Failure] = {}
    for blocks in levels(graph.blocks):
        names, lasts = {block.name for block in blocks}, {block.last for block in blocks}
        closing = [group for group in graph.free if group.block is not None and group.name in names]
        emptied = [group for group in graph.free if group.name in lasts]
        alone = {block.name for block in blocks if block.last is None}
        if (closing or emptied) and attempt(
            {**fewer, **nothing_of(emptied), **nothing_of(g for g in closing if g.name in alone)}
        ):
            needed |= gone(closing)
            graph = graph.without_emptying(gone(emptied))
    return graph.with_frozen({name: f'{line} needs it' for name, (line, _) in needed.items()})


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


def culprits(masks: dict[str, Tensor], attempt: Callable[[Kept], Failure | None]) -> dict[str, Failure]:
    """The masks that fail, found by halving, and how each fails."""
    found: dict[str, Failure] = {}
    if not masks or not attempt(masks):
        return {}
    pending = [list(masks)]
    while pending:
        names = pending.pop()
        if failed := attempt({name: masks[name] for name in names}):
            if len(names) == 1:
                found[names[0]] = failed
            else:
                pending += [names[: len(names) // 2], names[len(names) // 2 :]]
    rest = {name: mask for name, mask in masks.items() if name not in found}
    if rest and (failed := attempt(rest)):
        found |= dict.fromkeys(rest, failed)  # some fail only together
    return found


def first_that_runs(
    model: nn.Module, passes: Sequence[Forward | None], options: Options
) -> tuple[Stage, list[torch.Size], list]:
    """The first stage on which the whole model runs, the shapes of its outputs, and the numbers it computes with.

    Raises:
        RuntimeError: There is none.
    """
    refused: Exception | None = None
    for stage in stages(model, passes, options):
        try:
            with Numbers() as numbers:
                shapes = stage.run(stage.model)
        except ERRORS as error:
            refused = error
        else:
            return stage, shapes, numbers.found
    raise RuntimeError(
        f'{type(model).__name__} does not run with the example inputs that it was traced with: {refused}\n'
        'Pass inputs that its forward takes, or a `forward` that calls it rightly.'
    ) from refused


def failure(call: Callable[[], list[torch.Size]], shapes: list[torch.Size], numbers: list | None) -> Failure | None:
    """How a narrower copy fails; None if it runs, with outputs of the same shapes.

    Args:
        call: Runs it.
        shapes: Of the whole model's outputs.
        numbers: What the whole model computes with, if the copy has to compute with the same.
    """
    try:
        with SameNumbers(numbers):
            if call() == shapes:
                return None
    except ERRORS as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if not frame.filename.startswith(NOT_THE_MODEL)] or frames
        line = f'{os.path.basename(own[-1].filename)}:{own[-1].lineno}'
        return Failure(line, 'computes with' if isinstance(error, Deviation) else 'fixes')
    return Failure('the shape of an output', 'depends on')
