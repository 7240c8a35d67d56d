"""Remove channels from a model, or silence them in a copy: one index or mask per parameter slot."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from mmprune_gates.channels.calls import floating_tensor
from mmprune_gates.channels.flow import FullWidth
from mmprune_gates.channels.graph import ChannelGraph
from mmprune_gates.channels.groups import Block, outermost, within
from mmprune_gates.channels.kept import Kept
from mmprune_gates.gates.full_width import has_full_width, narrow, scale_input
from mmprune_gates.slimming.attributes import set_following
from mmprune_gates.slimming.removal import remove_modules
from mmprune_gates.slimming.rescale import rescale
from mmprune_gates.slimming.torch_attention import avoid_nested_tensors
from mmprune_gates.slimming.widths import FULL_WIDTH, Widths, replace_tensor, sync_attributes

Place = tuple[str, nn.Module, str]  # path of a module, the module, and the attribute that holds a tensor
Gone = tuple[Block, Tensor | None]  # a block to remove, and the constant left in its place


def slot_masks(graph: ChannelGraph, kept: Kept) -> dict[str, dict[int, Tensor]]:
    """Tensor name -> dimension -> (size of the dimension,) bool, True = keep; only where something goes."""
    masks: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for name, dims in graph.slots.items():
        for dim, index in dims.items():
            mask = kept.at(index)
            if not mask.all():
                masks[name][dim] = mask
    return dict(masks)


def gone_blocks(model: nn.Module, kept: Kept) -> list[Gone]:
    """The blocks to remove, closed or emptied, without those inside others to remove."""
    tensors = named_tensors(model)
    emptied = [block for block in kept.emptied if block not in kept.closed]
    gone = []
    for block in outermost([*kept.closed, *emptied]):
        constant = None
        if block in emptied:
            tail, index = block.tail, block.index
            assert tail is not None and index is not None  # a block that can be emptied has both
            whole = tail.constant(tensors).detach()
            stays = kept.at(index)
            constant = cut(whole, {tail.axis.dim: stays})
        gone.append((block, constant))
    return gone


def cut(tensor: Tensor, masks: Mapping[int, Tensor]) -> Tensor:
    """The part of a tensor that masks (dimension -> bool) keep, in the same memory format (channels_last)."""
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    in_memory = tensor.permute(order)  # index_select returns contiguous tensors
    for dim, mask in masks.items():
        places = mask.nonzero().flatten()
        in_memory = in_memory.index_select(order.index(dim), places.to(tensor.device))
    back = [order.index(dim) for dim in range(tensor.dim())]
    return in_memory.permute(back)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    tensors.update(model.named_buffers())
    return tensors


def places_of_tensors(model: nn.Module) -> dict[str, list[Place]]:
    """Tensor name -> every (module path, module, attribute) that holds that tensor; shared ones have several."""
    places: dict[Tensor, list[Place]] = defaultdict(list)
    by_name = {}
    parameters = model.named_parameters(remove_duplicate=False)
    buffers = model.named_buffers(remove_duplicate=False)
    for name, tensor in chain(parameters, buffers):
        path, _, attribute = name.rpartition('.')
        module = model.get_submodule(path)
        places[tensor].append((path, module, attribute))
        by_name[name] = places[tensor]
    return by_name


def masked_copy(model: nn.Module, graph: ChannelGraph, kept: Mapping[str, Tensor]) -> nn.Module:
    """A full-size copy in which the channels not kept are exact zeros wherever they are read.

    The reference for parity: its outputs are those of the slim model. Every parameter and buffer slot of such a
    channel is zero, whether it makes, passes on or reads the channel; so are the parameters that end a closed block.

    Args:
        model: The model ``graph`` was traced from; it does not change.
        graph: Its channel graph.
        kept: Group name -> (size,) bool, True = keep; groups not named are kept whole.

    Raises:
        ValueError: The graph does not allow ``kept``.
    """
    kept = graph.kept(kept)
    model = copy.deepcopy(model)
    tensors = named_tensors(model)
    with torch.no_grad():
        for name, dims in slot_masks(graph, kept).items():
            tensor = tensors[name]
            tensor.data = tensor.data.contiguous()  # an expanded one has a single element for all channels
            for dim, mask in dims.items():
                gone = ~mask.to(tensor.device)
                tensor.movedim(dim, 0)[gone] = 0
        like = floating_tensor(model)
        for path, wide in graph.full_width.items():
            module = model.get_submodule(path)
            mask = kept.at(wide.index)
            scale_input(module, wide.dim, mask.to(like))
        for block in kept.closed:
            for site in map(model.get_submodule, block.sites):
                for parameter in site.parameters(recurse=False):
                    parameter.zero_()
    return model


def slim_model(model: nn.Module, graph: ChannelGraph, kept: Mapping[str, Tensor]) -> dict:
    """Remove the channels not kept from a model, in place.

    Args:
        model: The model ``graph`` was traced from, without gates attached.
        graph: Its channel graph.
        kept: Group name -> (size,) bool, True = keep; groups not named are kept whole.

    Returns:
        ``dict(widths=..., removed=...)``, the specification that ``SlimModel`` takes: widths of the modules that are
        narrower now, and for each module of a removed block None, or the shape of the constant left in its place.

    Raises:
        ValueError: The graph does not allow ``kept``, or the model is not the one that was traced.
    """
    kept = graph.kept(kept)
    gone = gone_blocks(model, kept)

    def stays(name: str) -> bool:
        return not any(block.holds(name) for block, _ in gone)

    all_masks = slot_masks(graph, kept)
    masks = {name: dims for name, dims in all_masks.items() if stays(name)}
    shrunk_modules = shrink_tensors(model, masks, grouped_modules(model, graph))
    widths = {path: own for path, own in shrunk_modules.items() if stays(path)}
    rescale(model, graph, kept, stays)
    wide = {path: module for path, module in graph.full_width.items() if stays(path)}
    widths |= narrow_full_width(model, wide, kept)
    for one in graph.follows:
        if not has_changed(masks, one.module):
            continue
        module = model.get_submodule(one.module)
        value = int(kept.at(one.index).sum())
        if set_following(module, one.attribute, value):
            own = widths.setdefault(one.module, {})
            own[one.attribute] = value
    return {'widths': widths, 'removed': replace_blocks(model, gone)}


def narrow_full_width(model: nn.Module, modules: Mapping[str, FullWidth[Tensor]], kept: Kept) -> Widths:
    """Let modules that compute across channels read fewer of them; returns their widths."""
    like = floating_tensor(model)
    widths: Widths = {}
    for path, wide in modules.items():
        module = model.get_submodule(path)
        mask = kept.at(wide.index)
        if has_full_width(module) or not mask.all():
            width = narrow(module, like, wide.dim, mask, wide.zeros)
            widths[path] = {FULL_WIDTH: width}
    return widths


def has_changed(masks: Mapping[str, Mapping[int, Tensor]], path: str) -> bool:
    """Whether masks cut a tensor in the module at a path."""
    return any(is_inside(name, path) for name in masks)


def is_inside(name: str, path: str) -> bool:
    """Whether a module or tensor is in the module at a path, or is that module; all are in the model itself."""
    return not path or within(name, (path,))


def grouped_modules(model: nn.Module, graph: ChannelGraph) -> set[nn.Module]:
    """The layers that are known to be no depthwise convolutions."""
    modules = dict(model.named_modules())
    convolutions = [layer.name for layer in graph.layers if layer.kind == 'conv']
    found = set()
    for name in convolutions:
        if name in modules:
            found.add(modules[name])
    return found


def shrink_tensors(model: nn.Module, masks: Mapping[str, Mapping[int, Tensor]], grouped: set[nn.Module]) -> Widths:
    """Cut parameters and buffers down to what masks keep; returns the widths of their modules.

    Args:
        model: The model.
        masks: Tensor name -> dimension -> bool, True = keep.
        grouped: Convolutions that keep their groups.

    Raises:
        ValueError: A tensor that the model does not have, or has in another shape; the model is unchanged then.
    """
    places = places_of_tensors(model)
    slim = {}
    for name, dims in masks.items():  # check all, then change
        slim[name] = shrunk(name, places, dims)
    avoid_nested_tensors(model)
    changed: dict[str, list[str]] = defaultdict(list)
    for name, value in slim.items():
        for path, module, attribute in places[name]:
            value = replace_tensor(module, attribute, value)  # a shared tensor stays shared
            changed[path].append(attribute)
    widths: Widths = {}
    for path, attributes in changed.items():
        module = model.get_submodule(path)
        found = sync_attributes(module, attributes, module in grouped)
        if found:
            widths[path] = found
    return widths


def replace_blocks(model: nn.Module, gone: Sequence[Gone]) -> dict[str, list[int] | None]:
    """Replace blocks by zeros, or by a constant.

    Returns:
        Module path -> None, or the shape of the constant.
    """
    removed: dict[str, list[int] | None] = {}
    constants = {}
    for block, constant in gone:
        for path in block.modules:
            removed[path] = None
        if constant is not None and block.tail is not None:
            last = block.tail.module
            removed[last] = list(constant.shape)
            constants[last] = constant
    remove_modules(model, removed)
    for path, constant in constants.items():
        module = model.get_submodule(path)
        module.constant = nn.Parameter(constant)
    return removed


def shrunk(name: str, places: Mapping[str, list[Place]], dims: Mapping[int, Tensor]) -> Tensor:
    """The kept part of one tensor.

    Raises:
        ValueError: The model does not have it, or has it in another shape than when it was traced.
    """
    if name not in places:
        raise ValueError(f'the channel graph names the tensor {name!r}, which the model does not have')
    _, module, attribute = places[name][0]
    value = getattr(module, attribute).detach()
    shape = tuple(value.shape)
    for dim, mask in dims.items():
        if shape[dim] != len(mask):
            raise ValueError(f'{name} has shape {shape}; traced with {len(mask)} at dimension {dim}')
    return cut(value, dims)
