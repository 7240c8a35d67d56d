"""Removes channels from a model in training: its parameters, the state of its optimiser and its gates become narrower.

The remaining model computes the same output and trains as it would have: closed channels had neither output nor
gradient.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmprune_gates.channels.kept import Kept
from mmprune_gates.channels.narrowed import narrowed
from mmprune_gates.gates.attach import GateSet, attach_gate_set, detach_gates, gates_of
from mmprune_gates.pruning.gate_params import keep_only
from mmprune_gates.pruning.refusals import refuse_unknown_state
from mmprune_gates.slimming.surgery import cut, slim_model, slot_masks

Cut = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Replaced:
    """A parameter that was replaced by a narrow one.

    Attributes:
        old: The wide parameter.
        new: The narrow parameter; None if it was removed with a block.
        cut: Cuts a tensor of the old shape to the new shape.
    """

    old: nn.Parameter
    new: nn.Parameter | None
    cut: Cut


def shrink(model: nn.Module, kept: Kept, optimizer: torch.optim.Optimizer | None = None) -> GateSet:
    """Remove the channels that are not kept from a model with gates, in place, and from its optimiser.

    Parameters that lose nothing stay the same objects; the values of open gates do not change.

    Args:
        model: The model, its gates attached; the channels that are not kept are closed.
        kept: The channels to keep, in the graph of the gates.
        optimizer: The optimiser of the model, if it trains.

    Returns:
        The gates of the remaining channels.

    Raises:
        ValueError: The optimiser has state that cannot be narrowed; nothing has changed then.
    """
    gates = gates_of(model)
    if optimizer is not None:
        refuse_unknown_state(optimizer, model)
    masks = slot_masks(gates.graph, kept)
    group_of = {gates[group.name].theta: group for group in gates.graph.free}
    before = dict(model.named_parameters())
    left = narrow_in_place(model, kept)
    after = dict(model.named_parameters())
    for name in after.keys() - before.keys():
        after[name].requires_grad_(False)  # the constant of an emptied block, which no optimiser trains
    replaced = []
    for name, old in before.items():
        new = after.get(name)
        if new is not old:
            group = group_of.get(old)
            own = dims_cut(masks.get(name, {})) if group is None else gates.cut_of(group, left, kept)
            replaced.append(Replaced(old, new, own))
    for one in replaced:
        if one.new is not None and one.old.grad is not None:
            one.new.grad = one.cut(one.old.grad)
    if optimizer is not None:
        warn_of_others(optimizer, [one.old for one in replaced if one.new is not None and one.old not in group_of])
        follow_parameters(optimizer, replaced)
    return left


def narrow_in_place(model: nn.Module, kept: Kept) -> GateSet:
    """Remove the channels that are not kept from a model with gates; returns the remaining gates, attached to it."""
    gates = gates_of(model)
    for scale in gates.scales:
        if any(block.holds(scale.placement.module) for block in kept.emptied):
            scale.fold()  # the constant left in its place has no gate
    detach_gates(model)
    spec = slim_model(model, gates.graph, kept)
    graph = narrowed(gates.graph, kept, list(spec['removed']))
    left = gates.narrowed(graph, kept, spec)
    attach_gate_set(model, left)
    return left


def still_to_leave(model: nn.Module, shrunk: Sequence[Tensor]) -> Iterator[Kept]:
    """Selections that a model with gates has to keep, one after another, to get the shape of a saved state.

    Args:
        model: The model; the caller removes the channels that are not kept before asking for the next selection.
        shrunk: What was kept each time that channels left the saved model: (num_channels,) bool of its graph then.

    Raises:
        ValueError: The state belongs to another model.
    """
    gone = [kept.vector for kept in gates_of(model).shrunk]
    if len(gone) > len(shrunk) or any(not torch.equal(*pair) for pair in zip(gone, shrunk, strict=False)):
        raise ValueError('other channels have left the model than when the state was saved: build it anew to go on')
    for vector in shrunk[len(gone) :]:
        graph = gates_of(model).graph
        fits = isinstance(vector, Tensor) and vector.dtype == torch.bool and vector.shape == (graph.num_channels,)
        if not fits:
            raise ValueError(
                f'the checkpoint says which of other channels have left the model: {type(model).__name__} has '
                f'{graph.num_channels} in all groups; was it saved with another config?'
            )
        yield graph.keeping(vector)


def dims_cut(masks: dict[int, Tensor]) -> Cut:
    """A function that cuts a tensor by one mask per dimension."""
    return lambda tensor: cut(tensor, masks)


def warn_of_others(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    """Warn if some of the replaced parameters train by another optimiser, which would go on with the old ones."""
    own = {parameter for group in optimizer.param_groups for parameter in group['params']}
    others = [parameter for parameter in parameters if parameter.requires_grad and parameter not in own]
    if others:
        warnings.warn(
            f'{len(others)} parameters that require a gradient have been replaced by narrower ones, and are not in the '
            f'{type(optimizer).__name__} that the pruner knows: if another optimiser trains them, make that one anew',
            stacklevel=2,
        )


def follow_parameters(optimizer: torch.optim.Optimizer, replaced: list[Replaced]) -> None:
    """Replace wide parameters by narrow ones in an optimiser, with the matching part of its state."""
    new_of = {one.old: one.new for one in replaced}
    for group in optimizer.param_groups:
        group['params'] = [new_of.get(parameter, parameter) for parameter in group['params']]
        keep_only(group, [parameter is not None for parameter in group['params']])
    for one in replaced:
        state = optimizer.state.pop(one.old, None)
        if state is not None and one.new is not None:
            optimizer.state[one.new] = {key: narrow_state(value, one) for key, value in state.items()}


def narrow_state(value: Any, one: Replaced) -> Any:
    """An entry of an optimiser's state, cut to the narrow parameter if it has the shape of the wide one."""
    is_wide = isinstance(value, Tensor) and value.shape == one.old.shape
    return one.cut(value) if is_wide else value


def shrunk_in(state: Any) -> list[Tensor]:
    """What was kept each time that channels left, as a saved state has it; empty if it is no state of a pruner."""
    shrunk = state.get('shrunk') if isinstance(state, Mapping) else None
    return shrunk if isinstance(shrunk, list) else []


def has_left(state: Mapping[str, Any]) -> bool:
    """Whether a method had settled when its state was saved, and all that it had closed had left the model."""
    return bool(state.get('settled')) and bool(state['kept'].all())
