"""A rehearsal of slimming: does the model's own code follow when its layers become narrower?

``torch.export`` shows sizes as numbers, so a graph cannot tell whether a ``view`` takes its channel count from the
tensor at hand or from somewhere else, nor whether a factor was computed from a width. A narrower copy can: it must
run, give outputs of the same shapes, and compute with the same numbers. It runs on the meta device, without data or
arithmetic, whenever the model can.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from mmprune_gates.channels.calls import Forward, Options
from mmprune_gates.channels.graph import ChannelGraph
from mmprune_gates.channels.groups import Block, Group, outermost
from mmprune_gates.channels.index import touches
from mmprune_gates.gates.full_width import lay_among_zeros
from mmprune_gates.slimming.full_width import place_zeros
from mmprune_gates.slimming.heads import follow_heads, random_inputs, randomized
from mmprune_gates.slimming.numbers import Calls, Deviation, Numbers, SameNumbers, Step
from mmprune_gates.slimming.parity import exact_outputs, relative_error, tolerance
from mmprune_gates.slimming.stage import ERRORS, Failure, Stage, line_of_model_code, stages
from mmprune_gates.slimming.surgery import masked_copy, slim_model

Masks = dict[str, Tensor]


@dataclass(frozen=True)
class Rehearsal:
    """What a narrower copy of a model must match.

    Attributes:
        stage: The way to run the whole model and the copy.
        shapes: Shapes of the whole model's outputs.
        numbers: Numbers that the whole model computes with.
    """

    stage: Stage
    shapes: list[torch.Size]
    numbers: list[Step]

    def fails(self, graph: ChannelGraph, masks: Masks, same_numbers: bool = False) -> Failure | None:
        """How a copy that keeps only these channels fails; None if it runs, with outputs of the same shapes.

        Args:
            graph: Channel graph of the model.
            masks: Group name -> (size,) bool, True = keep.
            same_numbers: Whether the copy must also compute with the same numbers.
        """
        slim = copy.deepcopy(self.stage.model)
        slim_model(slim, graph, masks)
        compared = SameNumbers(self.numbers if same_numbers else None)
        try:
            with compared, Calls(compared):
                shapes = self.stage.run(slim)
        except Deviation as error:
            return Failure(line_of_model_code(error), 'computes with')
        except ERRORS as error:
            return Failure(line_of_model_code(error), 'fixes')
        if shapes != self.shapes:
            return Failure('the shape of an output', 'depends on')
        if not compared.is_complete():
            return Failure('how much the code computes', 'depends on')
        return None


def rehearse(
    model: nn.Module, graph: ChannelGraph, passes: Sequence[Forward | None], options: Options, trains: bool = False
) -> ChannelGraph:
    """The graph with everything frozen that the model's code cannot do without.

    Args:
        model: The model; it does not change.
        graph: Its channel graph.
        passes: ``forward(model, *args, **kwargs)`` of inference (None for a plain call), then that of training, if any.
        options: Positional and keyword arguments of a call.
        trains: Whether to run inference in training mode too, if there is no pass of training.

    Returns:
        The graph in which a group is frozen if a line of code fixes its number of channels, computes with it, or needs
        its block; the reason names the line. Full-width modules compute in the fastest correct way.

    Raises:
        RuntimeError: The whole model does not run.
    """
    rehearsal = first_that_runs(stages(model, passes, options, trains), type(model).__name__)
    graph = follow_heads(model, graph, rehearsal.stage)
    reasons: dict[str, str] = {}
    fewer: Masks = {}
    for more in (1, 0):  # code may pad to an even number of channels: odd and even ones are tried
        fewer = {}
        for number, group in enumerate(graph.free_channels, start=more):
            if group.name not in reasons:
                fewer[group.name] = less(group, number)
        stiff = culprits(fewer, partial(rehearsal.fails, graph, same_numbers=True))
        for name, failed in stiff.items():
            reasons[name] = f'{failed.line} {failed.how} its number of channels'
            del fewer[name]
    for name in wrong_guesses(model, graph, fewer, passes, options):
        reasons[name] = 'the code cuts its channels in another way than can be told'
        del fewer[name]
    graph = rehearse_blocks(rehearsal, graph.with_frozen(reasons), fewer)
    return place_zeros(model, graph, rehearsal.stage)


def wrong_guesses(
    model: nn.Module, graph: ChannelGraph, fewer: Masks, passes: Sequence[Forward | None], options: Options
) -> list[str]:
    """The groups that a view cuts along another dimension than it was taken for, or of which nothing is known.

    The shapes of a narrower copy can be right all the same; what it computes is not.

    Args:
        model: The model; it does not change.
        graph: Its channel graph.
        fewer: Masks of the groups that can shrink.
        passes: As in :func:`rehearse`.
        options: Positional and keyword arguments of a call.
    """
    suspects = {}
    for name, mask in fewer.items():
        if any(touches(index, graph.group(name)) for index in graph.guessed):
            suspects[name] = mask
    if not suspects:
        return []
    kinds = [(randomized(model), random_inputs(options)), (model, options)]  # zero weights hide what is behind them
    trials = [(own, inputs, forward) for own, inputs in kinds for forward in passes]

    def differs(masks: Masks) -> Failure | None:
        told = False
        for own, inputs, forward in trials:
            try:
                expected = exact_outputs(masked_copy(own, graph, masks), forward, inputs)
            except ERRORS:
                continue  # it does not run with these inputs
            slim = copy.deepcopy(own)
            slim_model(slim, graph, masks)
            failed = difference(expected, slim, forward, inputs)
            if failed is not None:
                return failed
            told = told or any(bool(output.isfinite().any()) for output in expected)
        return None if told else Failure('the code', 'hides')

    return list(culprits(suspects, differs))


def difference(expected: list[Tensor], model: nn.Module, forward: Forward | None, options: Options) -> Failure | None:
    """How the outputs of a model differ from those expected, where these are finite; None if they do not."""
    try:
        found = exact_outputs(model, forward, options)
        known = [output.isfinite() for output in expected]  # a mask of -inf is not
        error = relative_error(where(known, expected), where(known, found))
    except ERRORS as raised:
        return Failure(line_of_model_code(raised), 'fixes')
    is_equal = error <= tolerance(expected)
    return None if is_equal else Failure('the code', 'cuts')


def where(known: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[Tensor]:
    """Outputs with zeros where they are not known."""
    found = []
    for places, output in zip(known, outputs, strict=True):
        found.append(torch.where(places, output, 0))
    return found


def rehearse_blocks(rehearsal: Rehearsal, graph: ChannelGraph, fewer: Masks) -> ChannelGraph:
    """The graph in which blocks are frozen, or cannot be emptied, where the model's code needs them.

    Args:
        rehearsal: What a copy must match.
        graph: The graph.
        fewer: Masks that apply to every copy in addition.
    """

    def fails(masks: Masks) -> Failure | None:
        return rehearsal.fails(graph, fewer | masks)

    needed: dict[str, Failure] = {}
    for blocks in levels(graph.blocks):
        gated = [block for block in blocks if block.gate is not None]
        closing = nothing_of(graph, [block.name for block in gated])
        lasts = [block.last for block in blocks if block.last is not None]
        emptied = nothing_of(graph, lasts)
        if not closing and not emptied:
            continue
        never_empty = [block.name for block in gated if block.last is None]
        only_closed = nothing_of(graph, never_empty)
        all_at_once = {**emptied, **only_closed}
        if fails(all_at_once):
            needed.update(culprits(closing, fails))
            graph = graph.without_emptying(culprits(emptied, fails))
    return graph.with_frozen({name: f'{failed.line} needs it' for name, failed in needed.items()})


def less(group: Group, number: int) -> Tensor:
    """A mask that removes some channels of a group, at most half; how many depends on ``number``."""
    half = (group.size + 1) // 2
    stays = group.size - 1 - number % half
    return torch.arange(group.size) < stays


def nothing_of(graph: ChannelGraph, names: Iterable[str]) -> Masks:
    """Masks that remove all channels of the named groups."""
    masks = {}
    for name in names:
        size = graph.group(name).size
        masks[name] = torch.zeros(size, dtype=torch.bool)
    return masks


def levels(blocks: Sequence[Block]) -> list[list[Block]]:
    """Outermost blocks, then the others: once an outer block is gone, nothing would miss the blocks inside it."""
    outer = outermost(blocks)
    return [outer, [block for block in blocks if block not in outer]]


def culprits(masks: Masks, fails: Callable[[Masks], Failure | None]) -> dict[str, Failure]:
    """The masks that fail, found by bisection, and how each fails."""
    failed = fails(masks) if masks else None
    if failed is None:
        return {}
    found = dict(alone(masks, fails, failed))
    rest = {name: mask for name, mask in masks.items() if name not in found}
    if rest:
        failed = fails(rest)
        if failed:
            found.update(dict.fromkeys(rest, failed))  # some fail only together
    return found


def alone(
    masks: Masks, fails: Callable[[Masks], Failure | None], failed: Failure | None
) -> Iterator[tuple[str, Failure]]:
    """The masks that fail on their own, out of several that fail together, and how each fails.

    Args:
        masks: The masks.
        fails: Tries masks together; returns how they fail, or None.
        failed: How these masks fail together; None if that was not tried but follows.
    """
    if len(masks) == 1:
        (name,) = masks
        failed = failed or fails(masks)
        if failed:
            yield name, failed
        return
    items = list(masks.items())
    half = len(items) // 2
    first, second = dict(items[:half]), dict(items[half:])
    first_failed = fails(first)
    second_failed = None
    if first_failed:
        yield from alone(first, fails, first_failed)
        second_failed = fails(second)
    if second_failed or not first_failed:
        yield from alone(second, fails, second_failed)


def first_that_runs(ways: Iterable[Stage], name: str) -> Rehearsal:
    """A rehearsal on the first stage on which the whole model runs.

    Args:
        ways: The stages.
        name: Name of the model's class.

    Raises:
        RuntimeError: The model runs on none.
    """
    refused: Exception | None = None
    for stage in ways:
        lay_among_zeros(stage.model)  # in the other ways, a narrower copy would compute with other numbers
        try:
            with Numbers() as numbers, Calls(numbers):
                shapes = stage.run(stage.model)
        except ERRORS as error:
            refused = error
        else:
            return Rehearsal(stage, shapes, numbers.found)
    raise RuntimeError(
        f'{name} does not run with the example inputs that it was traced with: {refused}\n'
        'Pass inputs that its forward takes, or a `forward` that calls it rightly.'
    ) from refused
