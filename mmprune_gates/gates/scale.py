"""Let a gate act on a module: its weight, affine, input or output is scaled during its forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmprune_gates.channels.groups import Group
from mmprune_gates.channels.index import places, product_at
from mmprune_gates.channels.layers import bias_of
from mmprune_gates.gates.full_width import scale_input
from mmprune_gates.gates.gate import Gate, laid
from mmprune_gates.gates.placement import BEHIND, INPUT, OUTPUT, Placement
from mmprune_gates.gates.recompute import Recompute
from mmprune_gates.gates.stand_in import given

Source = tuple[Group, Gate, int]


class Scale:
    """Multiplies a module's affine, weight, input or output by gate values while its forward runs.

    Args:
        module: The module.
        placement: What to scale.
        sources: Groups that the values come from, each with its gate and the gate's member number for the module.
        pick: (C,) index of each position in the concatenated values; None if they are in order.

    Attributes:
        acted: Whether its module has run; reset by whoever reads it.
        rests: Whether all its gates are 1 for good, so that there is nothing to multiply.
    """

    def __init__(self, module: nn.Module, placement: Placement, sources: list[Source], pick: Tensor | None) -> None:
        self.placement, self.acted, self.rests = placement, False, False
        self.running, self.inside = Recompute(), False
        self.attach(module)
        self.sources = sources
        self.places = None if pick is None else places(pick)  # found here: torch.compile sees no branch on values

    def attach(self, module: nn.Module) -> None:
        """Begin to act on a module."""
        self.module: Any = module  # a norm or layer; for torch's types, a Module has no weight
        before = module.register_forward_pre_hook(self.before, prepend=True)  # first, on the input as given
        self.handles = before, module.register_forward_hook(self.after, always_call=True)

    def detach(self) -> None:
        """Stop acting."""
        for handle in self.handles:
            handle.remove()

    def move_to(self, module: nn.Module) -> None:
        """Act on a module that has replaced the previous one.

        Raises:
            RuntimeError: The module does not hold the same parameters.
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
        values = [gate(member) for _, gate, member in self.sources]
        value = values[0] if len(values) == 1 else torch.cat(values)
        if self.places is None:
            return value
        if self.places[0].device != value.device:
            self.places = tuple(place.to(value.device) for place in self.places)  # for good: the model has moved
        return product_at(value, *self.places)

    def targets(self, module: nn.Module) -> list[tuple[nn.Module, str, int]]:
        """Holder, attribute and dimension of each parameter to scale; none for a module that keeps its full width."""
        if self.placement.weight_dim is None:
            return []
        path, _, attribute = self.placement.parameter.rpartition('.')
        found = [(module.get_submodule(path), attribute, self.placement.weight_dim)]
        bias = bias_of(attribute)
        if self.placement.kind in BEHIND and isinstance(getattr(module, bias, None), Tensor):
            found.append((module, bias, 0))
        return found

    def before(self, module: nn.Module, args: tuple):
        """Forward pre-hook: scale the input, or shadow the parameters with scaled tensors."""
        self.acted = True
        if self.inside:
            self.after(module, args, None)  # torch calls it after errors, but not after an interrupt
        self.inside = True
        if self.rests or self.placement.kind == OUTPUT:
            return None
        value = self.value()
        if self.placement.kind == INPUT:
            x, *rest = given(args)
            factor = factor_for(x, value, self.placement.dim)
            return (self.running.multiply(x, factor), *rest)
        for holder, attribute, dim in self.targets(module):
            parameter = getattr(holder, attribute)
            factor = factor_for(parameter, value, dim)
            vars(holder)[attribute] = self.running.multiply(parameter, factor)  # found before the parameter
        return None

    def after(self, module: nn.Module, args: tuple, output):
        """Forward hook, called even if the forward fails: scale the output, or stop shadowing the parameters."""
        self.inside = False
        if self.rests:
            return None
        if self.placement.kind == OUTPUT:
            return None if output is None else output * factor_for(output, self.value(), self.placement.dim)
        self.running.end()
        if self.placement.kind == INPUT:
            return None
        for holder, attribute, _ in self.targets(module):
            vars(holder).pop(attribute, None)
        return None

    @torch.no_grad()
    def fold(self) -> None:
        """Multiply the gate values into the parameters for good."""
        value = self.value()
        if self.placement.weight_dim is None:
            scale_input(self.module, self.placement.dim, value)
            return
        for holder, attribute, dim in self.targets(self.module):
            parameter = getattr(holder, attribute)  # or a buffer
            size = parameter.shape[dim]  # groups of a convolution share their gates: its input may have more positions
            parameter.mul_(laid(value[:size], dim, parameter.dim()))


def factor_for(tensor: Tensor, value: Tensor, dim: int) -> Tensor:
    """Gate values laid along a dimension of a tensor, in its dtype."""
    factor = laid(value, dim, tensor.dim())
    return factor.to(tensor.dtype)


def module_at(model: nn.Module, path: str) -> nn.Module:
    """The module at a path that gates act on.

    Raises:
        RuntimeError: There is none.
    """
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise RuntimeError(f'{path}: a gate acts on this module, which the model no longer has') from error
