"""Remove channels from a model, or silence them in a copy: one index or mask per parameter slot."""

from __future__ import annotations

import copy
from collections import defaultdict

import torch
from torch import Tensor, nn

from mmprune_gates.channels.graph import Block, ChannelGraph, Kept
from mmprune_gates.gates.full_width import has_full_width, narrow, scale_input
from mmprune_gates.slimming.removal import remove_modules
from mmprune_gates.slimming.widths import FULL_WIDTH, Widths, replace_tensor, sync_attributes


def kept_vector(graph: ChannelGraph, kept: Kept) -> Tensor:
    """(num_channels + 1,) bool; the last is for index -1, what always stays."""
    return torch.cat([graph.flat(kept), torch.ones(1, dtype=torch.bool)])


def slot_masks(graph: ChannelGraph, kept: Kept) -> dict[str, dict[int, Tensor]]:
    """Tensor name -> dimension -> (size of the dimension,) bool, True = keep; only where something goes."""
    vector = kept_vector(graph, kept)
    masks: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for name, dims in graph.slots.items():
        for dim, index in dims.items():
            if not (mask := vector[index]).all():
                masks[name][dim] = mask
    return dict(masks)


def full_width_masks(graph: ChannelGraph, kept: Kept) -> dict[str, Tensor]:
    """Path of each module that keeps its full width -> (C,) bool, True = keep."""
    vector = kept_vector(graph, kept)
    return {path: vector[module.index] for path, module in graph.full_width.items()}


def removed_blocks(graph: ChannelGraph, kept: Kept) -> list[Block]:
    """The residual blocks whose own gate is closed."""
    vector = graph.flat(kept)
    return [group.block for group in graph.free if group.block is not None and not vector[group.start]]


def gone_blocks(model: nn.Module, graph: ChannelGraph, kept: Kept) -> list[tuple[Block, Tensor | None]]:
    """The blocks of which nothing is left to compute, and the constant that is left of those that were emptied.

    Blocks inside others that go are not named.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    gone = [(block, None) for block in removed_blocks(graph, kept)]
    vector = kept_vector(graph, kept)
    for block in graph.emptied(vector[:-1]):
        constant = block.tail.constant(tensors).detach()
        stays = vector[block.index].nonzero().flatten().to(constant.device)
        gone.append((block, constant.index_select(block.tail.axis.dim, stays)))
    blocks = [block for block, _ in gone]

    def is_inside(number: int, other: int) -> bool:
        same = set(blocks[number].modules) == set(blocks[other].modules)
        return all(map(blocks[other].holds, blocks[number].modules)) and (other < number if same else other != number)

    numbers = range(len(gone))
    return [gone[number] for number in numbers if not any(is_inside(number, other) for other in numbers)]


def owners(model: nn.Module) -> dict[str, list[tuple[str, nn.Module, str]]]:
    """Tensor name -> every (module path, module, attribute) that holds that tensor; shared ones have several."""
    places = defaultdict(list)
    names = {}
    for named in (
        model.named_parameters(remove_duplicate=False),
        model.named_buffers(remove_duplicate=False),
    ):
        for name, tensor in named:
            path, _, attribute = name.rpartition('.')
            first = names.setdefault(tensor, name)
            places[first].append((path, model.get_submodule(path), attribute))
            places[name] = places[first]
    return places


def masked_copy(model: nn.Module, graph: ChannelGraph, kept: Kept) -> nn.Module:
    """A full-size copy in which the channels not kept are exact zeros wherever they are read.

    The reference for parity: its outputs are those of the slim model. Every parameter and buffer slot of such
    a channel is zero: what makes it, what passes it on and what reads it; so is what ends a block that is not kept.

    Args:
        model: The model ``graph`` was traced from; it does not change.
        graph: Its channel graph.
        kept: Group name -> (size,) bool, True = keep; groups not named are kept whole.

    Raises:
        ValueError: ``kept`` is not one the graph allows.
    """
    masks = slot_masks(graph, kept)
    model = copy.deepcopy(model)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, dims in masks.items():
            for dim, mask in dims.items():
                gone = (~mask).nonzero().flatten().to(tensors[name].device)
                tensors[name].index_fill_(dim, gone, 0)
        for path, mask in full_width_masks(graph, kept).items():
            scale_input(model.get_submodule(path), graph.full_width[path].dim, mask.to(next(model.parameters())))
        for site in (site for block in removed_blocks(graph, kept) for site in block.sites):
            for parameter in model.get_submodule(site).parameters(recurse=False):
                parameter.zero_()
    return model


def slim_model(model: nn.Module, graph: ChannelGraph, kept: Kept) -> dict:
    """Remove the channels not kept from a model, in place.

    Args:
        model: The model ``graph`` was traced from, without gates attached.
        graph: Its channel graph.
        kept: Group name -> (size,) bool, True = keep; groups not named are kept whole.

    Returns:
        ``dict(widths=..., removed=...)``, the specification that ``SlimModel`` takes: widths of the modules that
        are narrower, and for the modules of blocks that go None, or the shape of the constant left in their place.

    Raises:
        ValueError: ``kept`` is not one the graph allows, or the model is not the one that was traced.
    """
    blocks = gone_blocks(model, graph, kept)

    def stays(name: str) -> bool:
        return not any(block.holds(name) for block, _ in blocks)

    masks = {name: dims for name, dims in slot_masks(graph, kept).items() if stays(name)}
    places = owners(model)
    slim = {name: shrunk(name, places, dims) for name, dims in masks.items()}  # check all, then change
    changed: dict[str, list[str]] = defaultdict(list)
    for name, value in slim.items():
        for path, module, attribute in places[name]:
            value = replace_tensor(module, attribute, value)  # one tensor in all places, as before
            changed[path].append(attribute)
    widths: Widths = {}
    for path in filter(stays, changed):
        if found := sync_attributes(model.get_submodule(path), changed[path]):
            widths[path] = found
    like = next(model.parameters())
    for path, mask in full_width_masks(graph, kept).items():
        module = model.get_submodule(path)
        if stays(path) and (not mask.all() or has_full_width(module)):
            widths[path] = {FULL_WIDTH: narrow(module, like, graph.full_width[path].dim, mask)}
    removed = dict.fromkeys(path for block, _ in blocks for path in block.modules)
    left = {block.tail.module: constant for block, constant in blocks if constant is not None}
    removed |= {path: list(constant.shape) for path, constant in left.items()}
    remove_modules(model, removed)
    for path, constant in left.items():
        model.get_submodule(path).constant = nn.Parameter(constant)
    return {'widths': widths, 'removed': removed}


def shrunk(name: str, places, dims: dict[int, Tensor]) -> Tensor:
    """The kept part of one tensor."""
    if name not in places:
        raise ValueError(f'the channel graph names the tensor {name!r}, which the model does not have')
    _, module, attribute = places[name][0]
    value = getattr(module, attribute).detach()
    for dim, mask in dims.items():
        if value.shape[dim] != len(mask):
            raise ValueError(f'{name} has shape {tuple(value.shape)}; traced with {len(mask)} at dimension {dim}')
        value = value.index_select(dim, mask.nonzero().flatten().to(value.device))
    return value
