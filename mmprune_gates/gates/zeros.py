"""Three ways in which a module of full width computes with fewer channels; each gives what zeros among them would give.

``among`` lays them among zeros: right for every module, and slow. ``behind`` puts the zeros behind them, and the
module's parameters in the same order: right where the module treats all channels alike (layer norms, group norms of one
group, softmax). ``none`` leaves zeros out: right where zeros only make a mean smaller which the input is divided by
(global response norms); the factor behind it and its epsilon grow instead. Which of them a module can do is tried
(``mmprune_gates/slimming/full_width.py``).

A module runs with its own forward; what it finds under the names of its parameters has changed for that time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from mmprune_gates.channels.flow import AMONG, BEHIND, NONE

Wide = Any  # a module of full width (``full_width.py``)
BUFFERS = ('kept_index', 'kept_scale')  # that make it one
SHOWN, HIDDEN = 'mmprune_gates_shown', 'mmprune_gates_hidden'


def among(module: Wide, x: Tensor) -> Tensor:
    """The input among zeros."""
    width = module.mmprune_gates_width
    shape = list(x.shape)
    shape[width['dim']] = width['channels']
    zeros = x.new_zeros(shape)
    return zeros.index_copy(width['dim'], module.kept_index, x)


def behind(module: Wide, x: Tensor) -> Tensor:
    """The input before zeros; the module shows its tensors in this order."""
    width = module.mmprune_gates_width
    gone = width['channels'] - len(module.kept_index)
    order = F.pad(module.kept_index, (0, gone))  # any values will do where the input is zero
    show(module, ordered(module, order))
    dims_after = x.dim() - 1 - width['dim'] % x.dim()
    return F.pad(x, (0, 0) * dims_after + (0, gone))


def without(module: Wide, x: Tensor) -> Tensor:
    """The input as it is; the module shows the kept part of its tensors, a larger first one and a larger epsilon."""
    ratio = module.mmprune_gates_width['channels'] / len(module.kept_index)
    tensors = ordered(module, module.kept_index)
    first, *_ = tensors
    tensors[first] = tensors[first] * ratio
    show(module, {**tensors, 'eps': module.eps * ratio})
    return x


def picked(module: Wide, output: Tensor) -> Tensor:
    """The kept channels of an output."""
    return output.index_select(module.mmprune_gates_width['dim'], module.kept_index)


def first_part(module: Wide, output: Tensor) -> Tensor:
    """As many channels of an output, from the first on."""
    part = output.narrow(module.mmprune_gates_width['dim'], 0, len(module.kept_index))
    return part.contiguous()  # as a norm's output is: code may view it in another shape


def unchanged(module: Wide, output: Tensor) -> Tensor:
    """All channels of an output."""
    return output


Way = Callable[[Wide, Tensor], Tensor]
WAYS: dict[str, tuple[Way, Way]] = {
    AMONG: (among, picked),
    BEHIND: (behind, first_part),
    NONE: (without, unchanged),
}


def ordered(module: Wide, index: Tensor) -> dict[str, Tensor]:
    """Name -> channels of that index, of each parameter and buffer of a module that holds all channels."""
    channels = module.mmprune_gates_width['channels']
    found = {}
    for name, tensor in own_tensors(module):
        dims = [dim for dim, size in enumerate(tensor.shape) if size == channels]
        for dim in dims:
            tensor = tensor.index_select(dim, index)
        if dims:
            found[name] = tensor
    return found


def own_tensors(module: Wide) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of a module without those that make it one of full width."""
    yield from module.named_parameters(recurse=False)
    for name, buffer in module.named_buffers(recurse=False):
        if name not in BUFFERS:
            yield name, buffer


def show(module: Wide, values: dict[str, Any]) -> None:
    """Let a module find other values under some of its names."""
    own = module.__dict__
    hidden = {name: own[name] for name in values if name in own}
    own.update(values)
    own[SHOWN], own[HIDDEN] = tuple(values), hidden


def show_again(module: Wide) -> None:
    """Let a module find its own values again."""
    own = module.__dict__
    for name in own.pop(SHOWN, ()):
        del own[name]
    own.update(own.pop(HIDDEN, {}))
