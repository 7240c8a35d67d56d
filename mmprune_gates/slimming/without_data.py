"""Faster runs on the meta device: results of ops whose shapes torch finds in slow Python.

What a narrower model could violate is still checked: by torch, before it calls these ops, or here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmprune_gates.compat import passes_control_flow


def normed(x: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Results of ``native_batch_norm``: its output, and mean and deviation of each channel."""
    statistics = x.new_empty(x.shape[1])
    return torch.empty_like(x), statistics, statistics


def layer_normed(x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
    """Results of ``native_layer_norm``: its output, and mean and deviation; None if the sizes do not agree."""
    leading = x.dim() - len(shape)
    sizes = [x.shape[leading:]]
    sizes += [parameter.shape for parameter in (weight, bias) if parameter is not None]
    if any(tuple(size) != tuple(shape) for size in sizes):
        return None
    ones = (1,) * len(shape)
    statistics = x.new_empty((*x.shape[:leading], *ones))
    output = torch.empty_like(x, memory_format=torch.contiguous_format)
    return output, statistics, statistics


def resized(x: Tensor, output_size: Sequence[int], *_: Any, **__: Any) -> Tensor | None:
    """Result of an interpolation to a size, in the memory format of its input; None if there is nothing in it."""
    if 0 in (*x.shape, *output_size):
        return None
    samples, channels = x.shape[:2]
    output = x.new_empty((samples, channels, *output_size))
    return output.contiguous(memory_format=memory_format(x))


def memory_format(x: Tensor) -> torch.memory_format:
    """The memory format that an op passes on from (N, C, H, W) to its result."""
    last = torch.channels_last
    like = torch.empty_like(x)  # dense, if x is a slice
    is_last = like.is_contiguous(memory_format=last) and not like.is_contiguous()
    return last if is_last else torch.contiguous_format


def copied(x: Tensor, *_: Any, **__: Any) -> Tensor:
    """Result of an activation."""
    return torch.empty_like(x)


def changed(x: Tensor, *_: Any, **__: Any) -> Tensor:
    """Result of an activation in place."""
    return x


ACTIVATIONS = 'elu gelu hardsigmoid hardswish hardtanh leaky_relu mish relu'.split()
RESULTS: dict[str, Callable[..., Any]] = {
    'aten.native_batch_norm.default': normed,
    'aten.native_layer_norm.default': layer_normed,
    'aten.upsample_bilinear2d.default': resized,
    'aten.upsample_bicubic2d.default': resized,
    'aten.softplus.default': copied,
    **{f'aten.{name}.default': copied for name in ACTIVATIONS},
    **{f'aten.{name}_.default': changed for name in ACTIVATIONS},
}


@passes_control_flow
class WithoutData(TorchDispatchMode):
    """Computes these results in place of torch where an op works on a tensor on the meta device."""

    supports_higher_order_operators = True  # torch.cond and the like

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """The result of one call."""
        kwargs = kwargs or {}
        known = RESULTS.get(str(func))
        result = None
        if known is not None and args[0].is_meta:
            result = known(*args, **kwargs)
        return func(*args, **kwargs) if result is None else result
