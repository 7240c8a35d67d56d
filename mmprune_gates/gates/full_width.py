"""A module that computes across channels, at its full width amid fewer channels: zeros stand where channels have gone.

It is the stock module with its own parameters, two buffers (``kept_index``, ``kept_scale``), an attribute
(``mmprune_gates_width``: dimension and full number of channels) and two hooks. The channel graph says which modules
they are (``ChannelGraph.full_width``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmprune_gates.gates.gate import laid

Widened = Any  # a module with the buffers and the attribute named above, of which torch's types know nothing


def keep_full_width(module: Widened, like: Tensor, dim: int, channels: int, kept: int) -> None:
    """Let a module take and give the first ``kept`` of its channels, unless it keeps its full width already.

    :func:`narrow` chooses other channels.

    Args:
        module: Turns one tensor, its first argument, into one of the same shape.
        like: A parameter of the model, for device and type of the buffers.
        dim: Channel dimension of that tensor.
        channels: Full width.
        kept: Width of what it takes and gives.
    """
    if has_full_width(module):
        return
    index = torch.arange(kept, device=like.device)
    module.register_buffer('kept_index', index)
    module.register_buffer('kept_scale', like.new_ones(kept))
    module.mmprune_gates_width = {'dim': dim, 'channels': channels}
    module.register_forward_pre_hook(among_zeros)
    module.register_forward_hook(kept_part)


def has_full_width(module: nn.Module) -> bool:
    """Whether :func:`keep_full_width` was called."""
    return hasattr(module, 'mmprune_gates_width')


@torch.no_grad()
def scale_input(module: Widened, dim: int, scale: Tensor) -> None:
    """Multiply what a module is called with by (C,) factors from now on; it takes and gives all channels."""
    if (scale == 1).all():
        return
    full = len(scale)
    keep_full_width(module, scale, dim, full, full)
    module.kept_scale.mul_(scale)


def narrow(module: Widened, like: Tensor, dim: int, mask: Tensor) -> dict[str, int]:
    """Let a module take and give fewer channels than it does.

    Args:
        module: The module.
        like: A parameter of the model.
        dim: Channel dimension of its input.
        mask: (C,) bool, True = keep.

    Returns:
        The last three arguments of :func:`keep_full_width` for a module as narrow.
    """
    full = len(mask)
    keep_full_width(module, like, dim, full, full)
    stays = mask.nonzero().flatten()
    stays = stays.to(module.kept_index.device)
    module.kept_index = module.kept_index[stays]
    module.kept_scale = module.kept_scale[stays]
    return module.mmprune_gates_width | {'kept': len(stays)}


def among_zeros(module: Widened, args: tuple) -> tuple:
    """Forward pre-hook: the input, scaled, among zeros."""
    x, *rest = args
    width = module.mmprune_gates_width
    dim = width['dim']
    shape = list(x.shape)
    shape[dim] = width['channels']
    zeros = x.new_zeros(shape)
    scale = laid(module.kept_scale, dim, x.dim())
    scaled = x * scale.to(x.dtype)
    wide = zeros.index_copy(dim, module.kept_index, scaled)
    return (wide, *rest)


def kept_part(module: Widened, args: tuple, output: Tensor) -> Tensor:
    """Forward hook: the kept channels of the output."""
    dim = module.mmprune_gates_width['dim']
    return output.index_select(dim, module.kept_index)
