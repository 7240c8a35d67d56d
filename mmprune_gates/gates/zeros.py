"""Three ways for a full-width module to compute with fewer channels; each gives what zeros among them would give.

``among`` lays the channels among zeros: correct for every module, but slow. ``behind`` puts the zeros behind them, and
the module's parameters in the same order: correct if the module treats all channels alike (layer norms, group norms of
one group, softmax). ``none`` leaves zeros out: correct if zeros only lower a mean that the input is divided by (global
response norms); the factor after the division and its epsilon grow instead. Which ways a module can use is found by
trial (``mmprune_gates/slimming/full_width.py``).

The module runs its own forward; meanwhile, other values shadow its parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from mmprune_gates.channels.flow import AMONG, BEHIND, NONE

Wide = Any  # a full-width module (``full_width.py``)
BUFFERS = ('kept_index', 'kept_scale')  # the buffers that make it one
SHOWN, HIDDEN = 'mmprune_gates_shown', 'mmprune_gates_hidden'


def among(module: Wide, x: Tensor) -> Tensor:
    """The input among zeros."""
    width = module.mmprune_gates_width
    shape = list(x.shape)
    shape[width['dim']] = width['channels']
    zeros = x.new_zeros(shape)
    return zeros.index_copy(width['dim'], module.kept_index, x)


def behind(module: Wide, x: Tensor) -> Tensor:
    """The input followed by zeros; the module shows its tensors in the same order."""
    width = module.mmprune_gates_width
    gone = width['channels'] - len(module.kept_index)
    order = F.pad(module.kept_index, (0, gone))  # any values will do where the input is zero
    show(module, ordered(module, order))
    dims_after = x.dim() - 1 - width['dim'] % x.dim()
    return F.pad(x, (0, 0) * dims_after + (0, gone))


def without(module: Wide, x: Tensor) -> Tensor:
    """The input itself; the module shows the kept part of its tensors, with the first one and the epsilon enlarged."""
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
    """The first channels of an output, as many as are kept."""
    part = output.narrow(module.mmprune_gates_width['dim'], 0, len(module.kept_index))
    return part.contiguous()  # as a norm's output is, since code may view it in another shape


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
    """Name -> the channels at ``index``, for each parameter and buffer that holds all channels of a module."""
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
    """Parameters and buffers of a module, without those that make it a full-width module."""
    yield from module.named_parameters(recurse=False)
    for name, buffer in module.named_buffers(recurse=False):
        if name not in BUFFERS:
            yield name, buffer


def show(module: Wide, values: dict[str, Any]) -> None:
    """Shadow attributes of a module with other values, until :func:`show_again`."""
    own = module.__dict__
    hidden = {name: own[name] for name in values if name in own}
    own.update(values)
    own[SHOWN], own[HIDDEN] = tuple(values), hidden


def show_again(module: Wide) -> None:
    """Undo :func:`show`."""
    own = module.__dict__
    for name in own.pop(SHOWN, ()):
        del own[name]
    own.update(own.pop(HIDDEN, {}))
