"""Full-width modules: they compute across channels, and in a narrower model count removed ones as zeros.

Each is the stock module with its own parameters, two buffers (``kept_index``, ``kept_scale``), an attribute
(``mmprune_gates_width``: dimension, full number of channels, where zeros stand, whether the input is scaled) and two
hooks. The channel graph lists these modules (``ChannelGraph.full_width``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmprune_gates.channels.flow import AMONG
from mmprune_gates.gates.gate import laid
from mmprune_gates.gates.zeros import WAYS, show_again

Widened = Any  # a module with the buffers and the attribute named above, which torch's types do not know


def keep_full_width(
    module: Widened, like: Tensor, dim: int, channels: int, kept: int, zeros: str = AMONG, scaled: bool = True
) -> None:
    """Turn a module into a full-width one that reads and returns its first ``kept`` channels.

    A module that is one already keeps the channels that it has, or the first ``kept`` of them. :func:`narrow` chooses
    other channels.

    Args:
        module: Turns one tensor, its first argument, into one of the same shape.
        like: A parameter of the model, for device and dtype of the buffers.
        dim: Channel dimension of that tensor.
        channels: Full width.
        kept: Number of channels of its input and output.
        zeros: Where the zeros for removed channels stand (``zeros.py``).
        scaled: Whether the input is multiplied by ``kept_scale``.
    """
    if has_full_width(module):
        module.kept_index = module.kept_index[:kept]
        module.kept_scale = module.kept_scale[:kept]
        return
    index = torch.arange(kept, device=like.device)
    module.register_buffer('kept_index', index)
    module.register_buffer('kept_scale', like.new_ones(kept))
    module.mmprune_gates_width = {'dim': dim, 'channels': channels, 'zeros': zeros, 'scaled': scaled}
    module.register_forward_pre_hook(widen)
    module.register_forward_hook(keep_part, always_call=True)


def has_full_width(module: nn.Module) -> bool:
    """Whether :func:`keep_full_width` was called."""
    return hasattr(module, 'mmprune_gates_width')


@torch.no_grad()
def scale_input(module: Widened, dim: int, scale: Tensor) -> None:
    """Multiply a module's input by (C,) factors from now on; it reads and returns as many channels as before."""
    if (scale == 1).all():
        return
    full = len(scale)
    keep_full_width(module, scale, dim, full, full)
    module.kept_scale.mul_(scale)
    module.mmprune_gates_width['scaled'] = True


def narrow(module: Widened, like: Tensor, dim: int, mask: Tensor, zeros: str | None = None) -> dict[str, Any]:
    """Let a module read and return fewer channels than before.

    Args:
        module: The module.
        like: A parameter of the model.
        dim: Channel dimension of its input.
        mask: (C,) bool, True = keep.
        zeros: Where the zeros for removed channels stand; None leaves that unchanged (at first, among the others).

    Returns:
        The arguments of :func:`keep_full_width` from ``dim`` on that make an equally narrow module.
    """
    full = len(mask)
    keep_full_width(module, like, dim, full, full, scaled=False)
    stays = mask.nonzero().flatten()
    stays = stays.to(module.kept_index.device)
    module.kept_index = module.kept_index[stays]
    module.kept_scale = module.kept_scale[stays]
    width = module.mmprune_gates_width
    width['zeros'] = zeros or width['zeros']
    width['scaled'] = width['scaled'] and (module.kept_scale.is_meta or bool((module.kept_scale != 1).any()))
    return width | {'kept': len(stays)}


def lay_among_zeros(model: nn.Module) -> None:
    """Let all full-width modules have zeros among their channels."""
    module: Widened
    for module in model.modules():
        if has_full_width(module):
            module.mmprune_gates_width['zeros'] = AMONG


def widen(module: Widened, args: tuple) -> tuple:
    """Forward pre-hook: the input, scaled, with zeros for the channels that have gone."""
    x, *rest = args
    width = module.mmprune_gates_width
    if width['scaled']:
        scale = laid(module.kept_scale, width['dim'], x.dim())
        x = x * scale.to(x.dtype)
    if is_narrow(module):
        before, _ = WAYS[width['zeros']]
        x = before(module, x)
    return (x, *rest)


def keep_part(module: Widened, args: tuple, output: Tensor | None) -> Tensor | None:
    """Forward hook, called even if the forward fails: the kept channels of the output."""
    show_again(module)
    if output is None or not is_narrow(module):
        return output
    _, after = WAYS[module.mmprune_gates_width['zeros']]
    return after(module, output)


def is_narrow(module: Widened) -> bool:
    """Whether channels have gone."""
    return len(module.kept_index) < module.mmprune_gates_width['channels']
