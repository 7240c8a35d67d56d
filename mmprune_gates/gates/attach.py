"""Attach gates to a model, ask for them, fold them into the weights, take them off again.

The model stays an instance of its own class and keeps its own keys; the gates are one more submodule,
``gates``. Modules that a gate acts on see a scaled weight, affine or input for the time of their forward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mmprune_gates.channels.graph import ChannelGraph
from mmprune_gates.channels.groups import Group, at, inside
from mmprune_gates.channels.kept import Kept
from mmprune_gates.gates.full_width import scale_input
from mmprune_gates.gates.gate import Gate, laid
from mmprune_gates.gates.placement import BEHIND, INPUT, OUTPUT, Placement, place_gates

NAME = 'gates'
MakeGate = Callable[[int], Gate]


class GateSet(nn.Module):
    """The gates of a model, one per free group, as its submodule ``gates``.

    Attributes:
        graph: The channel graph they belong to.
        placements: The modules they act on.
        placements_of: Those of each group; none of a frozen one.
        by_group: Gate of each free group; dots in group names are colons in keys.
        scales: What acts at each placement.
        owner: Who moves the gates; None as long as nobody does.
        warned: Whether a user was told that nobody does.
    """

    def __init__(self, graph: ChannelGraph, make_gate: MakeGate) -> None:
        super().__init__()
        self.graph, self.placements = graph, place_gates(graph)
        self.placements_of = {group.name: placements_of(group, self.placements) for group in graph.groups}
        self.by_group = nn.ModuleDict()
        for group in graph.free:
            gate = make_gate(group.size)
            gate.set_members(len(self.members(group)))
            self.by_group[key(group.name)] = gate
        self.scales: list[Scale] = []
        self.owner: str | None = None
        self.warned = False

    def members(self, group: Group) -> list[Placement]:
        """The placements of a group, in the order in which its gate numbers them."""
        return self.placements_of[group.name]

    def number(self, placement: Placement, group: Group) -> int:
        """Number of a placement among the members of a group."""
        members = self.members(group)
        return next(number for number, member in enumerate(members) if member is placement)

    def forward(self, *inputs):
        """What it is given: containers that call all their children, such as ``nn.Sequential``, call it as well."""
        return inputs[0] if len(inputs) == 1 else inputs

    def __getitem__(self, group: str) -> Gate:
        return self.by_group[key(group)]

    def claim(self, owner: str) -> None:
        """Let one pruner or hook move the gates.

        Raises:
            ValueError: Another one does already.
        """
        if self.owner is not None:
            raise ValueError(
                f'{owner}: the gates of this model are moved by {self.owner} already; keep one of the two (in a config '
                'both stand in custom_hooks)'
            )
        self.owner = owner

    def follow(self, model: nn.Module) -> None:
        """Let the gates act on what has taken the place of their modules, such as norms converted to SyncBN.

        Raises:
            RuntimeError: A module has gone, or was replaced by one that does not hold its parameters.
        """
        for scale in self.scales:
            scale.move_to(module_at(model, scale.placement.module))

    def flat(self, rows: Mapping[str, Tensor], otherwise: float = 0) -> Tensor:
        """(num_channels,) from one vector per group; ``otherwise`` where there is none."""
        like = next(iter(rows.values()))
        groups = self.graph.groups
        return torch.cat([rows.get(group.name, like.new_full((group.size,), otherwise)) for group in groups])

    def vector(self) -> Tensor:
        """(num_channels,) strength of the gates over all channels of the graph; 1 where there is no gate."""
        return self._spread(lambda gate: gate.strength())

    def _spread(self, read: Callable[[Gate], Tensor]) -> Tensor:
        """(num_channels,) what ``read`` finds in each gate; 1 where there is no gate."""
        return self.flat({group.name: read(self[group.name]) for group in self.graph.free}, otherwise=1)

    def theta(self) -> Tensor:
        """(num_channels,) parameters of shared gates, detached; 1 where there is no gate."""
        return self._spread(lambda gate: gate.theta.detach())

    def set_theta(self, theta: Tensor) -> None:
        """Set the parameters of all shared gates from (num_channels,) values."""
        with torch.no_grad():
            for group in self.graph.free:
                self[group.name].theta.copy_(theta[group.span])

    def set_eps(self, eps: float) -> None:
        """Anneal the gates that have a smoothness ``eps``."""
        for gate in self.by_group.values():
            if hasattr(gate, 'eps'):
                gate.eps.fill_(eps)

    def eps(self) -> float:
        """Smoothness of the gates; 0 where they have none."""
        return next((float(gate.eps) for gate in self.by_group.values() if hasattr(gate, 'eps')), 0.0)

    def slope(self) -> Tensor:
        """(num_channels,) derivative of each gate's value with respect to its theta; 1 where there is no gate."""
        return self._spread(Gate.slope)

    def values(self) -> dict[str, Tensor]:
        """Group name -> (size,) strength of each gate, detached, of all free groups; 0 only where it is closed."""
        with torch.no_grad():
            return {group.name: self[group.name].strength() for group in self.graph.free}

    def close(self, kept: Kept) -> None:
        """Set the gates of all channels that are not kept to exactly 0."""
        with torch.no_grad():
            for name, mask in kept.items():
                theta = self[name].theta
                theta.masked_fill_(~mask.to(theta.device), 0)

    def kept(self) -> Kept:
        """The channels whose gates are not exactly zero."""
        return self.graph.keeping(self.vector().detach().cpu() != 0)


class Scale:
    """Multiplies a module's affine, weight or input by gate values while its forward runs.

    Args:
        module: The module.
        placement: What to scale.
        gates: Where the values come from.

    Attributes:
        acted: Whether it has acted; whoever asks sets it back.
    """

    def __init__(self, module: nn.Module, placement: Placement, gates: GateSet) -> None:
        self.placement, self.acted = placement, False
        self.attach(module)
        groups = [group for group in gates.graph.free if bool(inside(placement.index, group).any())]
        self.sources = [(gates[group.name], gates.number(placement, group)) for group in groups]
        channels = torch.cat([torch.arange(group.start, group.span.stop) for group in groups])
        in_order = torch.arange(len(channels))
        place = torch.full((gates.graph.num_channels,), -1)
        place[channels] = in_order
        picked = at(place, placement.index, -1)
        self.pick = None if torch.equal(picked, in_order) else picked

    def attach(self, module: nn.Module) -> None:
        """Begin to act on a module."""
        self.module = module
        before = module.register_forward_pre_hook(self.before)
        self.handles = before, module.register_forward_hook(self.after, always_call=True)

    def detach(self) -> None:
        """Act no more."""
        for handle in self.handles:
            handle.remove()

    def move_to(self, module: nn.Module) -> None:
        """Act on a module that has taken the place of the one before.

        Raises:
            RuntimeError: It does not hold the same parameters.
        """
        if module is self.module:
            return
        same = all(getattr(module, name, None) is value for name, value in self.module.named_parameters())
        if not same:
            raise RuntimeError(
                f'{self.placement.module}: the {type(self.module).__name__} that a gate acts on was replaced by a '
                f'{type(module).__name__} with other parameters; replace it before gates are attached, or exclude it'
            )
        self.detach()
        self.attach(module)

    def value(self) -> Tensor:
        """(C,) factor for each position of the scaled dimension."""
        values = [gate(member) for gate, member in self.sources]
        value = values[0] if len(values) == 1 else torch.cat(values)
        return value if self.pick is None else at(value, self.pick, 1)

    def targets(self) -> tuple[tuple[str, int], ...]:
        """Parameters to scale, and the dimension of each."""
        weight = ('weight', self.placement.weight_dim)
        has_bias = self.placement.kind in BEHIND and self.module.bias is not None
        return (weight, ('bias', 0)) if has_bias else (weight,)

    def before(self, module: nn.Module, args: tuple):
        """Forward pre-hook: scale the input, or let scaled tensors stand before the parameters."""
        self.acted = True
        if self.placement.kind == OUTPUT:
            return None
        value = self.value()
        if self.placement.kind == INPUT:
            return (self.scaled(args[0], value), *args[1:])
        for name, dim in self.targets():
            parameter = getattr(module, name)
            scaled = parameter * laid(value, dim, parameter.dim())
            vars(module)[name] = scaled  # found before the parameter
        return None

    def after(self, module: nn.Module, args: tuple, output):
        """Forward hook, called even if the forward fails: scale the output, or let the parameters show again."""
        if self.placement.kind == OUTPUT:
            return None if output is None else self.scaled(output, self.value())
        if self.placement.kind == INPUT:
            return None
        for name, _ in self.targets():
            vars(module).pop(name, None)
        return None

    def scaled(self, tensor: Tensor, value: Tensor) -> Tensor:
        """An input or output multiplied by gate values, in its own precision."""
        factor = laid(value, self.placement.dim, tensor.dim())
        return tensor * factor.to(tensor.dtype)

    @torch.no_grad()
    def fold(self) -> None:
        """Multiply the gate values into the parameters for good."""
        value = self.value()
        if self.placement.weight_dim is None:
            scale_input(self.module, self.placement.dim, value)
            return
        for name, dim in self.targets():
            parameter = getattr(self.module, name)
            size = parameter.shape[dim]  # groups of a convolution share their gates: its input may have more positions
            parameter.mul_(laid(value[:size], dim, parameter.dim()))


def placements_of(group: Group, placements: Sequence[Placement]) -> list[Placement]:
    """The placements at which a group's gate acts."""
    return [placement for placement in placements if bool(inside(placement.index, group).any())]


def module_at(model: nn.Module, path: str) -> nn.Module:
    """The module at a path that gates act on.

    Raises:
        RuntimeError: There is none.
    """
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise RuntimeError(f'{path}: a gate acts on this module, which the model no longer has') from error


def key(group: str) -> str:
    """Key of a group in a ``ModuleDict``, which allows no dots (and tracers of scopes no slashes)."""
    return group.replace('.', ':')


def has_gates(model: nn.Module) -> bool:
    """Whether gates are attached."""
    return isinstance(getattr(model, NAME, None), GateSet)


def gates_of(model: nn.Module) -> GateSet:
    """The gates of a model.

    Raises:
        ValueError: It has none.
    """
    if not has_gates(model):
        raise ValueError(
            f'{type(model).__name__} has no gates: build it from a config with '
            "model.type='mmprune_gates.GatedModel', or call attach_gates"
        )
    return model.gates


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
        reasons = sorted({group.frozen for group in graph.groups})
        raise ValueError(f'{type(model).__name__} has no prunable channel: {"; ".join(reasons) or "no layers"}')
    like = next(model.parameters())
    gates = GateSet(graph, make_gate).to(like.device, like.dtype)
    gates.scales = [Scale(model.get_submodule(p.module), p, gates) for p in gates.placements]
    model.add_module(NAME, gates)
    return gates


def detach_gates(model: nn.Module) -> ChannelGraph:
    """Take the gates off: the model is again what it was, with the weights it has now. Returns its graph."""
    gates = gates_of(model)
    for scale in gates.scales:
        scale.detach()
    delattr(model, NAME)
    return gates.graph


def fold_gates(model: nn.Module) -> tuple[ChannelGraph, Kept]:
    """Multiply the gates into the weights and take them off.

    Returns:
        The channel graph, and the channels that are not closed.
    """
    gates = gates_of(model)
    kept = gates.kept()
    for scale in gates.scales:
        scale.fold()
    return detach_gates(model), kept
