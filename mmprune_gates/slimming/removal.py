"""Replacements for removed residual blocks: modules that only return zeros, or a constant, of the right shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmprune_gates.channels.calls import floating_tensor
from mmprune_gates.checks import MAPPING, SHAPE, checked, optional


class Removed(nn.Module):
    """Replaces a module of a removed block: returns zeros of its input's shape, whatever else it is given.

    Args:
        shape: Shape of the constant that is left of the block, to be added to the zeros; none by default.
    """

    def __init__(self, shape: Sequence[int] | None = None) -> None:
        super().__init__()
        self.constant = None
        if shape is not None:
            self.constant = nn.Parameter(torch.zeros(tuple(shape)))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(N, C, ...) -> zeros, or the constant, of the same shape."""
        zeros = torch.zeros_like(x)
        if self.constant is None:
            return zeros
        return zeros + self.constant.to(x.dtype)


def remove_modules(model: nn.Module, removed: Mapping[str, Sequence[int] | None]) -> None:
    """Replace modules by :class:`Removed`, in place.

    Args:
        model: The model.
        removed: Module path -> None, or the shape of the constant that is left in its place.

    Raises:
        ValueError: A path that the model does not have or that is the model itself, one inside another, or a value that
            is not a shape.
    """
    given = checked('removed', removed, MAPPING)
    modules = dict(model.named_modules(remove_duplicate=False))
    like = floating_tensor(model)
    for path, shape in given.items():
        gone = module_named(modules, path, 'removed')
        if gone is model:
            raise ValueError("removed names '', the model itself")
        checked(f'removed[{path!r}]', shape, optional(SHAPE))
        holder = next((other for other in given if path.startswith(f'{other}.')), None)
        if holder is not None:
            raise ValueError(f'removed names {path!r}, which goes with {holder!r} that it names as well')
        nothing = Removed(shape)
        nothing.to(like.device, like.dtype)
        for alias, module in modules.items():
            if module is gone:
                model.set_submodule(alias, nothing)


def train_constants(model: nn.Module) -> None:
    """Let the constants that removed blocks have left be trained from now on."""
    for module in model.modules():
        if isinstance(module, Removed):
            module.requires_grad_(True)


def module_named(modules: Mapping[str, nn.Module], path: str, key: str) -> nn.Module:
    """The module at a path that a slim config names.

    Args:
        modules: Path -> module, for all modules of a model; the model itself is at ``''``.
        path: The path.
        key: Key of the config that names it, for the message.

    Raises:
        ValueError: There is none.
    """
    if path not in modules:
        raise ValueError(
            f'{key} names the module {path!r}, which {type(modules[""]).__name__} does not have: the slim config '
            'belongs to another architecture, or its keys were changed after slimming'
        )
    return modules[path]
