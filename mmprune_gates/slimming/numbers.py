"""The numbers that a model computes with: unlike sizes, they must not change when it becomes narrower.

Code such as ``x / x.shape[1]`` runs with any number of channels, but computes something else with each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from mmprune_gates.channels.op import base_name
from mmprune_gates.channels.rules import Trait, has_trait
from mmprune_gates.checks import is_number
from mmprune_gates.compat import passes_control_flow
from mmprune_gates.slimming.without_data import WithoutData

ATTENTION = torch.nn.functional.scaled_dot_product_attention
MAKERS = frozenset((torch.tensor, torch.as_tensor, torch.scalar_tensor, torch.Tensor.new_tensor))
WINDOWS = ('max_pool', 'avg_pool', 'roll', 'im2col', 'constant_pad', 'reflection_pad', 'replication_pad')
FILLING = frozenset('full full_like new_full fill scalar_tensor'.split())
Shares = tuple[float, ...]
Step = tuple[str, Shares]


class Deviation(RuntimeError):
    """A narrower copy computes with other numbers than the whole model does at the same place."""


@passes_control_flow
class Numbers(WithoutData):
    """Records the numbers that ops compute with: all of element-wise and filling ops and of windows, of others floats.

    Of slices and pieces it records which part of the dimension they are: equal pieces stay that when they shrink.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Step] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Record the numbers of one call, then run it."""
        kwargs = kwargs or {}
        name = base_name(func)
        has_window = name.startswith(WINDOWS)
        any_number = has_trait(name, Trait.ELEMENTWISE) or name in FILLING or has_window
        kinds = (int, float) if any_number else float
        given = (*args, *kwargs.values())
        if has_window:
            given = tuple(tree_leaves(given))
        without_data = any(isinstance(arg, Tensor) and arg.is_meta for arg in given)
        numbers = [number(arg, without_data) for arg in given]
        own = tuple(value for value in numbers if isinstance(value, kinds))
        if own:
            self.note((name, own))
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if name == 'slice':
            self.note((name, part_of(result, *args)))
        elif name in ('split', 'split_with_sizes') and not isinstance(args[0], nn.Parameter):
            self.note((name, shares_of(result, *args)))
        return result

    def note(self, step: Step) -> None:
        """Record a call with numbers."""
        self.found.append(step)


@passes_control_flow
class SameNumbers(Numbers):
    """Compares the numbers with those of the whole model.

    Args:
        expected: What :class:`Numbers` found; None to compare nothing.
    """

    def __init__(self, expected: list[Step] | None) -> None:
        super().__init__()
        self.expected = expected

    def note(self, step: Step) -> None:
        """Compare a call with that of the whole model.

        Raises:
            Deviation: It computes with other numbers.
        """
        if self.expected is None:
            return
        place = len(self.found)
        super().note(step)
        known = self.expected[place] if place < len(self.expected) else None
        if repr(step) != repr(known):  # not by value: NaN is the same number here
            raise Deviation(f'computes {step}, expected {known}')

    def is_complete(self) -> bool:
        """Whether all calls of the whole model have been compared."""
        return self.expected is None or len(self.found) == len(self.expected)


class Calls(TorchFunctionMode):
    """What a rehearsal does with calls of torch, before they become ops.

    Numbers that the code puts into tensors (``torch.tensor(C ** -0.5)``) are recorded. Attention without a scale gets
    one that does not depend on its number of channels: weights make up for it.

    Args:
        numbers: Records the numbers.
    """

    def __init__(self, numbers: Numbers) -> None:
        super().__init__()
        self.numbers = numbers

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """One call."""
        kwargs = kwargs or {}
        if func in MAKERS:
            leaves = tree_leaves((args, kwargs))
            given = tuple(leaf for leaf in leaves if is_number(leaf))
            self.numbers.note((func.__name__, given))
        if func is ATTENTION and kwargs.get('scale') is None:
            kwargs = {**kwargs, 'scale': 1.0}
        return func(*args, **kwargs)


def number(arg: Any, without_data: bool) -> Any:
    """An argument, or the number in a constant; None for a bool.

    Args:
        arg: The argument.
        without_data: Whether the call has tensors on the meta device, so that a scalar tensor with data is a constant.
    """
    if isinstance(arg, bool):
        return None
    is_constant = without_data and isinstance(arg, Tensor) and arg.dim() == 0 and not arg.is_meta
    return arg.item() if is_constant else arg


def part_of(taken: Tensor, x: Tensor, dim: int = 0, start: int | None = None, _: Any = None, step: int = 1) -> Shares:
    """Which part of a dimension a slice is: where it begins, its step, and its share of the whole.

    Interleaved pieces begin at the same place whatever their size, those side by side at the same share of the whole.
    """
    size = max(1, x.shape[dim])
    begin, _, _ = slice(start, None).indices(size)
    place = begin / size if step == 1 else begin
    share = taken.shape[dim] / size
    return place, step, share


def shares_of(pieces: Sequence[Tensor], x: Tensor, _: Any, dim: int = 0) -> Shares:
    """The share of a dimension that each of its pieces has."""
    size = max(1, x.shape[dim])
    return tuple(piece.shape[dim] / size for piece in pieces)
