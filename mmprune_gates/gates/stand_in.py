"""A stand-in for the input of a module whose code takes the width of its inner channels from the shape of its input.

Attention often reads ``B, N, C = x.shape`` and views the results of its layers as C channels. If those become fewer,
the module is called with a stand-in for its input, which shows their number as its last size. It still does so after a
permutation, or a view to a shape that has that number. Every op that computes gets the input itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from types import MethodType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

WIDTH = 'mmprune_gates_shown_width'  # attribute of the module


class StandIn(Tensor):
    """A stand-in for a tensor; it shows another size along one dimension than the tensor has.

    Attributes:
        given: The tensor itself.
        along: The dimension.
        width: The size shown along it.
    """

    given: Tensor
    along: int
    width: int

    @staticmethod
    def of(given: Tensor, along: int, width: int) -> StandIn:
        """A stand-in for a tensor; it takes no memory.

        Args:
            given: The tensor.
            along: Number of the dimension, not negative.
            width: The size to show along it.
        """
        make: Callable[..., Any] = Tensor._make_wrapper_subclass  # noqa: SLF001 (no public way has no memory)
        shown = cast(StandIn, make(StandIn, (), dtype=given.dtype, device=given.device))
        shown.given, shown.along, shown.width = given, along, width
        return shown

    def sizes(self) -> torch.Size:
        """The shape that it shows."""
        own = self.given.shape
        return torch.Size((*own[: self.along], self.width, *own[self.along + 1 :]))

    def same(self, given: Tensor) -> StandIn:
        """A stand-in for another tensor that shows the same size along the same dimension."""
        return StandIn.of(given, self.along, self.width)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Sequence = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function in SHOWN and isinstance(args[0], StandIn):
            return SHOWN[function](*args, **kwargs)
        args, kwargs = given((tuple(args), kwargs))
        return function(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return cls.__torch_function__(function, types, args, kwargs)


def _size(shown: StandIn, dim: int | None = None) -> Any:
    """``Tensor.size``."""
    return shown.sizes() if dim is None else shown.sizes()[dim]


def _contiguous(shown: StandIn, *args: Any, **kwargs: Any) -> StandIn:
    """``Tensor.contiguous``."""
    return shown.same(shown.given.contiguous(*args, **kwargs))


def _permute(shown: StandIn, *dims: Any) -> StandIn:
    """``Tensor.permute``."""
    order = [dim % shown.given.dim() for dim in _flat(dims)]
    return StandIn.of(shown.given.permute(order), order.index(shown.along), shown.width)


def _transpose(shown: StandIn, dim0: int, dim1: int) -> StandIn:
    """``Tensor.transpose``."""
    order = list(range(shown.given.dim()))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return _permute(shown, order)


def _pad(shown: StandIn, pad: Sequence[int], *args: Any, **kwargs: Any) -> Tensor:
    """``F.pad``."""
    padded = F.pad(shown.given, pad, *args, **kwargs)
    return shown.same(padded) if padded.shape[shown.along] == shown.given.shape[shown.along] else padded


def _view(shown: StandIn, *sizes: Any) -> Tensor:
    """``Tensor.view`` and ``Tensor.reshape``: a stand-in if the size shown is a dimension of its own in the result."""
    sizes = _flat(sizes)
    if isinstance(sizes[0], torch.dtype):
        return shown.given.view(*sizes)
    as_shown = _without_minus_one(sizes, prod(shown.sizes()))
    behind = prod(shown.given.shape[shown.along + 1 :])
    for dim in reversed(range(len(sizes))):
        own = (*as_shown[:dim], shown.given.shape[shown.along], *as_shown[dim + 1 :])
        stands_alone = as_shown[dim] == shown.width and prod(as_shown[dim + 1 :]) == behind
        if stands_alone and prod(own) == shown.given.numel():
            return StandIn.of(shown.given.reshape(own), dim, shown.width)
    return shown.given.reshape(sizes)


def _without_minus_one(sizes: tuple, elements: int) -> tuple:
    """Sizes with -1 replaced by the size that it stands for."""
    rest = prod(size for size in sizes if size != -1)
    return tuple(elements // rest if size == -1 else size for size in sizes)


def _flat(numbers: tuple) -> tuple:
    """A tuple of numbers that are given one by one, or as one sequence."""
    return tuple(numbers[0]) if len(numbers) == 1 and isinstance(numbers[0], (tuple, list)) else numbers


SHOWN: dict[Any, Callable[..., Any]] = {  # functions that a stand-in handles itself
    Tensor.shape.__get__: StandIn.sizes,  # type: ignore[attr-defined]
    Tensor.size: _size,
    Tensor.contiguous: _contiguous,
    Tensor.permute: _permute,
    Tensor.transpose: _transpose,
    Tensor.view: _view,
    Tensor.reshape: _view,
    F.pad: _pad,
}


def show_width(module: Any, width: int) -> None:
    """From now on, call a module with a stand-in of the given width for its first tensor, (..., C).

    Args:
        module: The module.
        width: Size of the last dimension that the stand-in shows.
    """
    if shown_width(module) is None:
        module.register_forward_pre_hook(_show, with_kwargs=True)
        # torch.compile does not know stand-ins; a bound method is copied with its module
        module.forward = MethodType(torch.compiler.disable(type(module).forward), module)
        for layer in module.modules():  # their hooks, also backward ones, must get the tensor itself
            if layer is not module:
                layer.register_forward_pre_hook(_hand_over, prepend=True, with_kwargs=True)
    setattr(module, WIDTH, width)


def shown_width(module: nn.Module) -> int | None:
    """Width shown by the stand-in that a module is called with; None if there is none."""
    return getattr(module, WIDTH, None)


def given(args: Any) -> Any:
    """Arguments, nested or not, with stand-ins replaced by the tensors they stand for."""
    return tree_map_only(StandIn, lambda shown: shown.given, args)


def named(args: tuple, kwargs: Mapping[str, Any]) -> dict[int | str, Any]:
    """Arguments by position or name."""
    arguments: dict[int | str, Any] = dict(enumerate(args))
    arguments.update(kwargs)
    return arguments


def first_tensor(arguments: Mapping[int | str, Any]) -> int | str | None:
    """Position or name of the first argument that is a tensor; None if there is none."""
    for place, value in arguments.items():
        if isinstance(value, Tensor):
            return place
    return None


def _show(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
    """Forward pre-hook: replace the input by a stand-in."""
    arguments = named(args, kwargs)
    place = first_tensor(arguments)
    if place is None:
        return None
    x = arguments[place]
    arguments[place] = StandIn.of(x, x.dim() - 1, getattr(module, WIDTH))
    return tuple(arguments[number] for number in range(len(args))), {name: arguments[name] for name in kwargs}


def _hand_over(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple:
    """Forward pre-hook of a layer: replace stand-ins by the tensors they stand for."""
    return given(args), given(kwargs)
