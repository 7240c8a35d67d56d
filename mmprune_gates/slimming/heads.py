"""Find by trial which heads can go: those whose module's code follows.

A graph tells which channels are heads, but not where the code takes their number from: an attribute, the shape of its
input, or a constant. So each module with heads runs with fewer of them, on random numbers in float64, and must give
what the whole module gives with those heads at zero. Changed attributes and a stand-in for the module's input are tried
in turn; if nothing helps, the heads stay.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mmprune_gates.channels.calls import Options, run, same_draws
from mmprune_gates.channels.graph import ChannelGraph
from mmprune_gates.channels.groups import Group, common_path
from mmprune_gates.channels.heads import Follow, Seen
from mmprune_gates.channels.index import has_pairs, touches, unpaired
from mmprune_gates.gates.stand_in import first_tensor, named, shown_width
from mmprune_gates.slimming.attributes import COUNTS, INNER, SHOWN_WIDTH, SIZES, whole_attributes
from mmprune_gates.slimming.parity import TOLERANCE, relative_error
from mmprune_gates.slimming.stage import ERRORS, Stage, line_of_model_code
from mmprune_gates.slimming.surgery import is_inside, masked_copy, slim_model

Masks = dict[str, Tensor]
Way = tuple[str, ...]  # kinds of attributes that follow

COUNT, SIZE, WIDTHS, SHAPE = 'count', 'size', 'widths', 'shape'
MORE: tuple[Way, ...] = ((), (WIDTHS,), (SHAPE,), (WIDTHS, SHAPE))
ONE: tuple[Way, ...] = ((COUNT,), (SIZE,))  # heads go, or channels of heads
TWO: tuple[Way, ...] = ((COUNT, SIZE), (COUNT,))  # the second where the code views by -1 and scales by the size


@dataclass(frozen=True, eq=False)
class Scope:
    """A module that encloses all views, products and tensors of some heads.

    Attributes:
        path: Its path.
        groups: The groups of those heads.
        seen: Channels with those heads that it, or a module in it, views in another shape.
        calls: Module path -> arguments of its first call, of all modules.
    """

    path: str
    groups: tuple[Group, ...]
    seen: tuple[Seen, ...]
    calls: Mapping[str, Options]

    @cached_property
    def dims(self) -> Tensor:
        """The channels of heads, if heads can go as well."""
        nothing = torch.zeros(0, dtype=torch.long)
        _, second = unpaired(torch.cat([nothing, *(one.index for one in self.seen)]))
        return second[second >= 0]

    def ways(self) -> list[Way]:
        """What can follow, in the order in which it is tried."""
        counted = TWO if len(self.dims) else ONE
        return [(*own, *more) for own in counted for more in MORE]

    def names(self, index: Tensor, way: Way) -> list[str]:
        """Names of the attributes that can hold the number of the channels in an index."""
        found = list(INNER) if WIDTHS in way else []
        if has_pairs(index):
            return found  # neither heads nor channels of heads, but both
        is_dims = bool(torch.isin(index, self.dims).all())
        if COUNT in way and not is_dims:
            found += COUNTS
        if SIZE in way and (is_dims or not len(self.dims)):
            found += SIZES
        return found

    def parts(self) -> Iterator[Scope]:
        """The scope; if heads and channels of heads can go, then also with heads alone and with channels alone."""
        yield self
        dims = [group for group in self.groups if touches(self.dims, group)]
        heads = [group for group in self.groups if group not in dims]
        if dims and heads:
            yield replace(self, groups=tuple(heads))
            yield replace(self, groups=tuple(dims))

    def around(self) -> Scope | None:
        """The scope widened to the next enclosing module that is called; None if there is none."""
        path = called(holder_of(self.path), self.calls)
        return replace(self, path=path) if self.path and path in self.calls else None


def follow_heads(model: nn.Module, graph: ChannelGraph, stage: Stage) -> ChannelGraph:
    """The graph with the attributes that must follow when heads go; heads that cannot go are frozen.

    Args:
        model: The model; it does not change.
        graph: Its channel graph.
        stage: A way to run it.
    """
    follows: list[Follow] = []
    reasons: dict[str, str] = {}
    for scope in find_scopes(graph, stage):
        failures: dict[str, str] = {}
        for part in scope.parts():
            found, failed = first_way(model, graph, part)
            names = [group.name for group in part.groups]
            if failed is None:
                follows += found
                failures = {name: reason for name, reason in failures.items() if name not in names}
                break
            failures |= dict.fromkeys(names, failed)
        reasons |= failures
    return replace(graph, follows=tuple(follows)).with_frozen(reasons)


def first_way(model: nn.Module, graph: ChannelGraph, scope: Scope) -> tuple[list[Follow], str | None]:
    """The attributes that follow in the first way that works; if none works, why the last one fails.

    A module whose outputs differ is tried in the module around it as well, which may ignore what differs.
    """
    if scope.path not in scope.calls:
        return [], 'heads of several modules, which cannot be tried alone'
    inner, *around = [Trial(model, graph, one) for one in (scope, scope.around()) if one is not None]
    failed = None
    for way in scope.ways():
        found = list(following(model, scope, way))
        try:
            failed = inner.failure(found)
            if failed is None or any(outer.failure(found) is None for outer in around):
                return found, None
        except ERRORS as error:
            failed = f'{line_of_model_code(error)} fixes its number of heads'
    return [], failed


def find_scopes(graph: ChannelGraph, stage: Stage) -> list[Scope]:
    """The smallest called modules that enclose all that belongs to heads which may go."""
    places: dict[str, list[Group]] = defaultdict(list)
    for group in graph.free_channels:
        holders = {one.module for one in graph.seen if touches(one.index, group)}
        holders |= {product.layer for product in graph.products(group)}
        if holders:
            holders |= {holder_of(name) for name in tensors_of(graph, group)}
            places[common_path(holders)].append(group)
    groups_at: dict[str, list[Group]] = defaultdict(list)
    for path, groups in places.items():
        groups_at[called(path, stage.first_calls)] += groups
    scopes = []
    for path, groups in groups_at.items():
        seen = [one for one in graph.seen if any(touches(one.index, group) for group in groups)]
        scopes.append(Scope(path, tuple(groups), tuple(seen), stage.first_calls))
    return scopes


def called(path: str, calls: Mapping[str, Options]) -> str:
    """The innermost called module at or around a path, '' if there is none; a module list, say, is never called."""
    while path and path not in calls:
        path = holder_of(path)
    return path


def tensors_of(graph: ChannelGraph, group: Group) -> list[str]:
    """Names of the parameters and buffers that hold channels of a group."""
    found = []
    for name, dims in graph.slots.items():
        if any(touches(index, group) for index in dims.values()):
            found.append(name)
    return found


def holder_of(name: str) -> str:
    """Path of the module that holds a tensor or a module."""
    return name.rpartition('.')[0]


def following(model: nn.Module, scope: Scope, way: Way) -> Iterator[Follow]:
    """The attributes that follow in one way, each once: of vectors of one length, those of pairs come first."""
    known = set()
    for one in sorted(scope.seen, key=lambda one: not has_pairs(one.index)):
        module = model.get_submodule(one.module)
        sizes = whole_attributes(module, scope.names(one.index, way))
        if SHAPE in way:
            sizes[SHOWN_WIDTH] = shown_width(module) or input_width(scope.calls.get(one.module))
        for name, size in sizes.items():
            place = (one.module, name)
            if size == len(one.index) and place not in known:
                known.add(place)
                yield Follow(one.module, name, one.index)


def input_width(call: Options | None) -> int:
    """Last size of the first tensor that a call is given; 0 if there is none of several dimensions."""
    if call is None:
        return 0
    arguments = named(*call)
    place = first_tensor(arguments)
    if place is None or arguments[place].dim() < 2:
        return 0
    return arguments[place].shape[-1]


class Trial:
    """A module on random numbers, whole and with some heads at zero, to be compared with narrower copies.

    Args:
        model: The model; it does not change.
        graph: Its channel graph.
        scope: The module and its heads.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, scope: Scope) -> None:
        self.path = scope.path
        self.options = scope.calls[scope.path]
        self.masks = fewer_heads(scope.groups)
        self.original = model.get_submodule(scope.path)
        inside = [read for read in graph.reads if is_inside(read.layer, scope.path)]
        self.graph = replace(graph, reads=tuple(inside), follows=(), blocks=())

    @cached_property
    def model(self) -> nn.Module:
        """The module with random parameters, in a model that holds nothing else."""
        return placed(randomized(self.original), self.path)

    def outputs(self, model: nn.Module) -> list[Tensor]:
        """Outputs of the module in a copy of that model, for the same inputs and random draws each time."""
        module = model.get_submodule(self.path)
        with same_draws(module):
            return run(module, None, random_inputs(self.options))

    @cached_property
    def whole(self) -> list[Tensor]:
        """Outputs of the whole module."""
        return self.outputs(copy.deepcopy(self.model))

    @cached_property
    def expected(self) -> list[list[Tensor]]:
        """Its outputs with heads at zero, for each choice of masks."""
        return [self.outputs(masked_copy(self.model, self.graph, masks)) for masks in self.masks]

    def failure(self, follows: Sequence[Follow]) -> str | None:
        """Why a module with fewer heads does not compute what it computes with those at zero; None if it does.

        Raises:
            RuntimeError: It does not run, or another of :data:`ERRORS`.
        """
        graph = replace(self.graph, follows=tuple(follows))
        with torch.compiler.set_stance('force_eager'), torch.no_grad():
            for masks, expected in zip(self.masks, self.expected, strict=True):
                failed = self.difference(graph, masks, expected)
                if failed is not None:
                    return failed
        return None

    def difference(self, graph: ChannelGraph, masks: Masks, expected: list[Tensor]) -> str | None:
        """How a module with fewer heads differs from the same module with those heads at zero; None if it does not.

        If those heads make no difference to the whole module, the trial proves nothing, and fails as well.
        """
        slim = copy.deepcopy(self.model)
        slim_model(slim, graph, masks)
        found = self.outputs(slim)
        kind = type(self.original).__name__
        if [one.shape for one in expected] != [one.shape for one in found]:
            return f'the shape of an output of {kind} depends on its number of heads'
        error = relative_error(expected, found)
        if not error <= TOLERANCE:
            return f'{kind} computes something else with fewer heads'
        if not relative_error(self.whole, expected) > TOLERANCE:
            return f'what heads do in {kind} does not show when it is tried'
        return None


def placed(module: nn.Module, path: str) -> nn.Module:
    """A model that holds a module at a path, and nothing else."""
    for name in reversed(path.split('.') if path else []):
        holder = nn.Module()
        holder.add_module(name, module)
        module = holder
    return module


def fewer_heads(groups: Sequence[Group]) -> list[Masks]:
    """Masks that remove one, two or three channels of the groups in turn, keep only those, or keep every other one."""
    few_less = {}
    few = {}
    odd = {}
    for number, group in enumerate(groups):
        place = (torch.arange(group.size) - group.size // 2) % group.size
        chosen = place < min(1 + number % 3, group.size - 1)
        few_less[group.name] = ~chosen
        few[group.name] = chosen
        odd[group.name] = torch.arange(group.size) % 2 == 1
    return [few_less, few, odd]


def randomized(module: nn.Module) -> nn.Module:
    """A copy on the CPU, in float64 and evaluation mode, with random parameters."""
    module = copy.deepcopy(module).double().cpu()
    module.eval()  # eval() of some modules does not return the module
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        values = torch.randn(parameter.shape, generator=generator, dtype=torch.double)
        parameter.data.copy_(values / 2)
    return module


def random_inputs(options: Options) -> Options:
    """Arguments of a call with random numbers in place of its tensors, see :func:`random_like`."""
    generator = torch.Generator().manual_seed(0)
    return tree_map(partial(random_like, generator), options)


def random_like(generator: torch.Generator, leaf: Any) -> Any:
    """Random numbers for a floating-point tensor; one of integers as it is, if its values are known, else 0 and 1.

    In each row of a bool tensor every other place is True: a mask, whichever value hides, must neither hide all nor
    nothing. Rows begin at random, since those of several heads may differ.
    """
    if not isinstance(leaf, Tensor):
        return leaf
    if leaf.dtype == torch.bool:
        begins = torch.randint(2, (*leaf.shape[:-1], 1), generator=generator)
        places = torch.arange(leaf.shape[-1]) if leaf.dim() else 0
        return ((places + begins) % 2 == 0).view(leaf.shape)
    if not leaf.is_floating_point():
        if not leaf.is_meta:
            return leaf.cpu()
        return torch.randint(2, leaf.shape, generator=generator, dtype=leaf.dtype)  # valid indices of most tables
    return torch.randn(leaf.shape, generator=generator, dtype=torch.double)
