"""Find by trial the fastest correct way for each full-width module to handle removed channels.

Laying channels among zeros is always correct but costs two slow copies. Whether a module can do with less
(``zeros.py``) depends on what it computes. So each runs with some of its channels gone, on random numbers in float64,
and must give what it gives with zeros among them.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from io import BytesIO
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map, tree_map_only

from mmprune_gates.channels.calls import Options, run, same_draws
from mmprune_gates.channels.flow import AMONG, BEHIND, NONE, FullWidth
from mmprune_gates.channels.graph import ChannelGraph
from mmprune_gates.channels.index import touches
from mmprune_gates.gates.full_width import narrow
from mmprune_gates.slimming.heads import random_like, randomized
from mmprune_gates.slimming.parity import relative_error
from mmprune_gates.slimming.stage import ERRORS, Stage

EXACT = 1e-10  # relative error that is rounding in float64


def place_zeros(model: nn.Module, graph: ChannelGraph, stage: Stage) -> ChannelGraph:
    """The graph with the fastest correct way for each full-width module that can lose channels.

    Args:
        model: The model; it does not change.
        graph: Its channel graph.
        stage: A way to run it.
    """
    ways = {}
    known: dict[bytes | None, str] = {}
    for path, wide in graph.full_width.items():
        can_shrink = any(touches(wide.index, group) for group in graph.free_channels)
        if can_shrink and path in stage.first_calls:
            module = randomized(model.get_submodule(path))
            call = stage.first_calls[path]
            trial = written(module, wide, call)
            if trial is None or trial not in known:
                known[trial] = fastest_way(module, wide, call)
            ways[path] = known[trial]
    return with_zeros(graph, ways)


def with_zeros(graph: ChannelGraph, ways: Mapping[str, str]) -> ChannelGraph:
    """The graph with the ways in which some full-width modules, by path, handle removed channels."""
    reads = []
    for read in graph.reads:
        if isinstance(read, FullWidth) and read.layer in ways:
            read = replace(read, zeros=ways[read.layer])
        reads.append(read)
    return replace(graph, reads=tuple(reads))


def written(module: nn.Module, wide: FullWidth[Tensor], call: Options) -> bytes | None:
    """All that a trial depends on, the same for equal trials; None if not all of the module can be written."""
    arguments = tree_map_only(Tensor, lambda leaf: (leaf.shape, leaf.dtype), call)
    file = BytesIO()
    try:
        torch.save((module, arguments, wide.dim, len(wide.index)), file)
    except (*ERRORS, pickle.PickleError):  # its class may be defined in a function, say
        return None
    found = file.getvalue()
    return None if b'getattr' in found else found  # a bound method is written as that, without its code


def fastest_way(module: nn.Module, wide: FullWidth[Tensor], call: Options) -> str:
    """Where a module's zeros stand in the fastest way that is correct in evaluation and in training mode.

    Args:
        module: The module, with random parameters; it does not change.
        wide: Its read.
        call: Arguments to call it with, replaced by random numbers.
    """
    generator = torch.Generator().manual_seed(0)
    options = tree_map(partial(random_like, generator), call)
    masks = some_masks(len(wide.index), generator)
    for zeros in (NONE, BEHIND):
        if all(is_right(module, wide, options, zeros, mask) for mask in masks):
            return zeros
    return AMONG


def is_right(module: nn.Module, wide: FullWidth[Tensor], options: Options, zeros: str, mask: Tensor) -> bool:
    """Whether a narrowed module gives the same outputs with its zeros at ``zeros`` as with zeros among its channels."""
    outputs = partial(narrow_outputs, module, wide, options, mask)
    try:
        error = relative_error(outputs(AMONG), outputs(zeros))
    except ERRORS:  # the module lacks what this way needs
        return False
    return error < EXACT


def some_masks(channels: int, generator: torch.Generator) -> list[Tensor]:
    """Masks that move channels to positions where only a module that treats all channels alike stays correct."""
    number = torch.arange(channels)
    at_random = torch.rand(channels, generator=generator) < 0.5
    masks = [number > 0, number == channels - 1, at_random]  # the first moves each channel by one
    return [mask for mask in masks if mask.any()]


@torch.no_grad()
def narrow_outputs(
    module: nn.Module, wide: FullWidth[Tensor], options: Options, mask: Tensor, zeros: str
) -> list[Tensor]:
    """Outputs of a narrowed module with its zeros at ``zeros``, in evaluation and then in training mode."""
    (x, *rest), kwargs = options
    places = mask.nonzero().flatten()
    args = (x.index_select(wide.dim, places), *rest)
    found: list[Any] = []
    for training in (False, True):
        slim = copy.deepcopy(module)
        slim.train(training)  # train() of some modules does not return the module
        narrow(slim, x, wide.dim, mask, zeros)
        with same_draws(slim):
            found += run(slim, None, (args, kwargs))
    return found
