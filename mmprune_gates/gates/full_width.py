"""A module that computes across channels, at its full width amid fewer channels: zeros stand where channels have gone.

It is the stock module, with its own parameters, two buffers and two hooks. The channel graph says which modules they
are (``ChannelGraph.full_width``).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from mmprune_gates.gates.gate import laid

INDEX, SCALE = 'kept_index', 'kept_scale'  # buffers
WIDTH = 'mmprune_gates_width'  # attribute: dimension and full number of channels


def keep_full_width(module: nn.Module, like: Tensor, dim: int, channels: int, kept: int) -> None:
    """Let a module take and give the first ``kept`` of its channels; :func:`narrow` chooses others.

    Args:
        module: Turns one tensor, its first argument, into one of the same shape.
        like: A parameter of the model, for device and type of the buffers.
        dim: Channel dimension of that tensor.
        channels: Full width.
        kept: Width of what it takes and gives.
    """
    module.register_buffer(INDEX, torch.arange(kept, device=like.device))
    module.register_buffer(SCALE, torch.ones(kept, device=like.device, dtype=like.dtype))
    setattr(module, WIDTH, {'dim': dim, 'channels': channels})
    module.register_forward_pre_hook(partial(among_zeros, dim=dim, channels=channels))
    module.register_forward_hook(partial(kept_part, dim=dim))


def has_full_width(module: nn.Module) -> bool:
    """Whether :func:`keep_full_width` was called."""
    return hasattr(module, WIDTH)


@torch.no_grad()
def scale_input(module: nn.Module, dim: int, scale: Tensor) -> None:
    """Multiply what a module is called with by (C,) factors from now on; it takes and gives all channels."""
    if bool((scale == 1).all()):
        return
    if not has_full_width(module):
        keep_full_width(module, scale, dim, len(scale), len(scale))
    getattr(module, SCALE).mul_(scale)


def narrow(module: nn.Module, like: Tensor, dim: int, mask: Tensor) -> dict[str, int]:
    """Let a module take and give fewer channels than it does.

    Args:
        module: The module.
        like: A parameter of the model.
        dim: Channel dimension of its input.
        mask: (C,) bool, True = keep.

    Returns:
        The last three arguments of :func:`keep_full_width` for a module as narrow.
    """
    if not has_full_width(module):
        keep_full_width(module, like, dim, len(mask), len(mask))
    for name in (INDEX, SCALE):
        value = getattr(module, name)
        setattr(module, name, value[mask.nonzero().flatten().to(value.device)])
    return {**getattr(module, WIDTH), 'kept': int(mask.sum())}


def among_zeros(module: nn.Module, args: tuple, dim: int, channels: int) -> tuple:
    """Forward pre-hook: the input, scaled, among zeros."""
    x, *rest = args
    shape = list(x.shape)
    shape[dim] = channels
    scale = laid(getattr(module, SCALE), dim, x.dim()).to(x.dtype)
    return (x.new_zeros(shape).index_copy(dim, getattr(module, INDEX), x * scale), *rest)


def kept_part(module: nn.Module, args: tuple, output: Tensor, dim: int) -> Tensor:
    """Forward hook: the kept channels of the output."""
    return output.index_select(dim, getattr(module, INDEX))
