"""Attach gates to a model, look them up, fold them into the weights, detach them.

The model stays an instance of its own class and keeps its own keys; the gates are one more submodule, ``gates``.
During the forward of a module that a gate acts on, its weight, affine, input or output is scaled.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmprune_gates.channels.calls import floating_tensor
from mmprune_gates.channels.graph import ChannelGraph
from mmprune_gates.channels.groups import Group, within
from mmprune_gates.channels.index import renumbered, touches
from mmprune_gates.channels.kept import Kept
from mmprune_gates.gates.gate import Gate
from mmprune_gates.gates.placement import Placement, place_gates
from mmprune_gates.gates.scale import Scale, module_at

NAME = 'gates'
MakeGate = Callable[[int], Gate]


class GateSet(nn.Module):
    """The gates of a model, one per free group, as its submodule ``gates``.

    Attributes:
        graph: The channel graph they belong to.
        placements: Where they act.
        by_group: Gate of each free group; dots in group names are colons in keys.
        placements_of: Group name -> placements of its gate, in the order of its members; none for a frozen group.
        scales: The :class:`Scale` at each placement.
        whole: The graph before any channel left the model.
        shrunk: What was kept each time that channels left the model, in terms of the graph until then.
        spec: The ``SlimModel`` specification of the channels that have left.
        owner: Name of the pruner or hook that moves the gates; None if there is none.
        warned: Whether the user was warned that there is none.
    """

    def __init__(self, graph: ChannelGraph, make_gate: MakeGate) -> None:
        super().__init__()
        self.graph, self.placements = graph, place_gates(graph)
        self.placements_of = {}
        for group in graph.groups:
            self.placements_of[group.name] = [one for one in self.placements if touches(one.index, group)]
        self.by_group = nn.ModuleDict()
        for group in graph.free:
            gate = make_gate(group.size)
            gate.set_members(len(self.members(group)))
            self.by_group[key(group.name)] = gate
        self.scales: list[Scale] = []
        self.whole = graph
        self.shrunk: list[Kept] = []
        self.spec: dict[str, dict] = {'widths': {}, 'removed': {}}
        self.owner: str | None = None
        self.warned = False

    def scale(self, module: nn.Module, placement: Placement) -> Scale:
        """The :class:`Scale` that acts on a module at a placement."""
        groups = [group for group in self.graph.free if touches(placement.index, group)]
        sources, place, size = [], torch.full((self.graph.num_channels,), -1), 0
        for group in groups:
            number = next(number for number, member in enumerate(self.members(group)) if member is placement)
            sources.append((group, self[group.name], number))
            place[group.span] = torch.arange(size, size + group.size)
            size += group.size
        picked = renumbered(placement.index, place)
        in_order = torch.equal(picked, torch.arange(size))
        return Scale(module, placement, sources, None if in_order else picked)

    def members(self, group: Group) -> list[Placement]:
        """The placements of a group, in the order in which its gate numbers them."""
        return self.placements_of[group.name]

    def forward(self, *inputs):
        """The inputs, unchanged: containers that call all their children, such as ``nn.Sequential``, call this too."""
        return inputs[0] if len(inputs) == 1 else inputs

    def __getitem__(self, group: str) -> Gate:
        gate: Any = self.by_group[key(group)]  # for torch's types just a Module
        return gate

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or a pickle, has no owner: nothing moves its gates yet."""
        return {**self.__dict__, 'owner': None}

    def claim(self, owner: str) -> None:
        """Make one pruner or hook the owner of the gates, who alone moves them.

        Raises:
            ValueError: The gates have an owner already.
        """
        if self.owner is not None:
            raise ValueError(
                f'{owner}: the gates of this model are moved by {self.owner} already; keep one of the two (in a '
                'config: one pruning hook in custom_hooks)'
            )
        self.owner = owner

    def follow(self, model: nn.Module) -> None:
        """Let the gates act on the modules that have replaced theirs, such as norms converted to SyncBN.

        Raises:
            RuntimeError: A module has gone, or was replaced by one that does not hold its parameters.
        """
        for scale in self.scales:
            scale.move_to(module_at(model, scale.placement.module))

    def flat(self, rows: Mapping[str, Tensor], otherwise: float = 0) -> Tensor:
        """(num_channels,) one vector per group, concatenated; ``otherwise`` for groups without a vector."""
        like = next(iter(rows.values()), torch.zeros(()))  # all gates may have left with their blocks
        groups = self.graph.groups
        return torch.cat([rows.get(group.name, like.new_full((group.size,), otherwise)) for group in groups])

    @property
    def device(self) -> torch.device:
        """Device of the gates; the CPU if all have left."""
        return next((parameter.device for parameter in self.parameters()), torch.device('cpu'))

    def vector(self) -> Tensor:
        """(num_channels,) strength of the gates over all channels of the graph; 1 where there is no gate."""
        return self._spread(lambda gate: gate.strength())

    def _spread(self, read: Callable[[Gate], Tensor]) -> Tensor:
        """(num_channels,) results of ``read`` for all gates; 1 where there is no gate."""
        return self.flat({group.name: read(self[group.name]) for group in self.graph.free}, otherwise=1)

    def theta(self) -> Tensor:
        """(num_channels,) parameters of shared gates, detached; 1 where there is no gate."""
        return self._spread(lambda gate: gate.theta.detach())

    def set_theta(self, theta: Tensor) -> None:
        """Set the parameters of all shared gates from (num_channels,) values."""
        with torch.no_grad():
            theta = theta.to(self.device)
            for group in self.graph.free:
                self[group.name].theta.copy_(theta[group.span])

    def set_eps(self, eps: float) -> None:
        """Set the smoothness ``eps`` of the gates that have one."""
        for gate in self.by_group.values():
            own = getattr(gate, 'eps', None)
            if own is not None:
                own.fill_(eps)

    def eps(self) -> float:
        """Smoothness of the gates; 0 where they have none."""
        found = [getattr(gate, 'eps', None) for gate in self.by_group.values()]
        return next((float(own) for own in found if own is not None), 0.0)

    def values(self) -> dict[str, Tensor]:
        """Name of each free group -> (size,) strength of its gate, detached; 0 only where it is closed."""
        with torch.no_grad():
            return {group.name: self[group.name].strength() for group in self.graph.free}

    def close(self, kept: Kept) -> None:
        """Set the gates of all channels that are not kept to exactly 0."""
        with torch.no_grad():
            closed = ~kept.vector.to(self.device)
            for group in self.graph.free:
                self[group.name].theta.masked_fill_(closed[group.span], 0)

    @property
    def rests(self) -> bool:
        """Whether all gates are 1 for good."""
        return all(scale.rests for scale in self.scales)

    def rest(self) -> None:
        """Let gates that are 1 for good cost nothing: they are no longer multiplied, and receive no gradient."""
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        for scale in self.scales:
            scale.rests = True

    def narrowed(self, graph: ChannelGraph, kept: Kept, spec: Mapping[str, Mapping]) -> GateSet:
        """The gates of the model after channels have gone; a gate that loses nothing keeps its parameter.

        Args:
            graph: Graph of the narrower model.
            kept: The channels that stay.
            spec: The specification that :func:`~mmprune_gates.slim_model` has returned.
        """
        gates = iter([copy.deepcopy(self[group.name]) for group in graph.free])
        left = GateSet(graph, lambda size: next(gates))
        for group in graph.free:
            old = self[group.name].theta
            with torch.no_grad():
                new = self.cut_of(group, left, kept)(old)
            left[group.name].theta = old if new.shape == old.shape else nn.Parameter(new, old.requires_grad)
        left.whole = self.whole
        left.shrunk = [*self.shrunk, kept]
        left.spec = merged(self.spec, spec)
        left.owner, left.warned = self.owner, self.warned
        return left

    def cut_of(self, group: Group, left: GateSet, kept: Kept) -> Callable[[Tensor], Tensor]:
        """A function that narrows a gate's theta, or optimiser state of the same shape, to the gates that are left.

        Args:
            group: The group of the gate.
            left: The gates that are left; they need not include one for this group.
            kept: The channels that stay.
        """
        places = [place_of(member) for member in self.members(group)]
        rows = [places.index(place_of(member)) for member in left.placements_of.get(group.name, [])]
        columns = kept[group.name].nonzero().flatten()

        def cut(tensor: Tensor) -> Tensor:
            if tensor.dim() > 1:
                tensor = tensor[torch.tensor(rows, device=tensor.device)]
            return tensor.index_select(-1, columns.to(tensor.device))

        return cut

    def kept_of_whole(self, kept: Kept) -> Kept:
        """``kept`` in terms of the whole model's channels; those that have left are not kept."""
        vector = kept.vector
        for earlier in reversed(self.shrunk):
            wide = earlier.vector.clone()  # gates of emptied blocks are open
            wide[earlier.staying] = vector
            vector = wide
        return self.whole.keeping(vector)

    def kept(self) -> Kept:
        """The channels whose gates are not exactly zero."""
        return self.graph.keeping(self.vector().detach().cpu() != 0)


def place_of(placement: Placement) -> tuple[str, str, str]:
    """Key of a placement among those of a group."""
    return placement.module, placement.kind, placement.parameter


def merged(first: Mapping[str, Mapping], then: Mapping[str, Mapping]) -> dict[str, dict]:
    """The ``SlimModel`` specification of two successive removals."""
    removed = {**first['removed'], **then['removed']}
    widths: dict[str, dict] = {}
    for path in (*first['widths'], *then['widths']):
        if not within(path, tuple(removed)):  # each holds only the attributes that it has changed
            widths[path] = {**first['widths'].get(path, {}), **then['widths'].get(path, {})}
    return {'widths': widths, 'removed': removed}


def key(group: str) -> str:
    """Key of a group in a ``ModuleDict``, which allows no dots (nor do tracers of scopes allow slashes)."""
    return group.replace('.', ':')


def has_gates(model: nn.Module) -> bool:
    """Whether gates are attached."""
    return isinstance(getattr(model, NAME, None), GateSet)


def gates_of(model: nn.Module) -> GateSet:
    """The gates of a model.

    Raises:
        ValueError: It has none.
    """
    gates = getattr(model, NAME, None)
    if not isinstance(gates, GateSet):
        raise ValueError(
            f'{type(model).__name__} has no gates: build it from a config with '
            "model.type='mmprune_gates.GatedModel', or call attach_gates"
        )
    return gates


def attach_gates(model: nn.Module, graph: ChannelGraph, make_gate: MakeGate) -> GateSet:
    """Put a gate on every free group; the model's output does not change.

    Args:
        model: The model ``graph`` was traced from.
        graph: Its channel graph.
        make_gate: Gate from the size of a group.

    Raises:
        ValueError: The model has gates already, an attribute ``gates`` of its own, or no group that can be pruned.
    """
    if hasattr(model, NAME):
        raise ValueError(f'{type(model).__name__} already has an attribute {NAME!r}')
    if not graph.free:
        reasons = sorted({group.frozen for group in graph.groups if group.frozen is not None})
        raise ValueError(f'{type(model).__name__} has no prunable channel: {"; ".join(reasons) or "no layers"}')
    like = floating_tensor(model)
    gates = GateSet(graph, make_gate).to(like.device, like.dtype)
    attach_gate_set(model, gates)
    return gates


def attach_gate_set(model: nn.Module, gates: GateSet) -> None:
    """Make gates a submodule of a model, and let them act on its modules."""
    gates.scales = [gates.scale(model.get_submodule(place.module), place) for place in gates.placements]
    model.add_module(NAME, gates)


def detach_gates(model: nn.Module) -> ChannelGraph:
    """Detach the gates; returns their graph. The model is as it was before, with its present weights."""
    gates = gates_of(model)
    for scale in gates.scales:
        scale.detach()
    delattr(model, NAME)
    return gates.graph


def fold_gates(model: nn.Module) -> tuple[ChannelGraph, Kept]:
    """Multiply the gates into the weights and detach them.

    Returns:
        The channel graph, and the channels that are not closed.
    """
    gates = gates_of(model)
    kept = gates.kept()
    for scale in gates.scales:
        scale.fold()
    return detach_gates(model), kept
