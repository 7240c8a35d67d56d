"""Measures the ops of a model at several widths, and fits their sum to the model's latency."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mmprune_gates.budget.latency import Latency, kind_of
from mmprune_gates.budget.latency_table import Curve, Fit, Table, Target, digest_of
from mmprune_gates.budget.selection import Candidates, Limits
from mmprune_gates.channels import ChannelGraph
from mmprune_gates.channels.kept import Kept
from mmprune_gates.channels.workload import Work
from mmprune_gates.slimming import slim_model
from mmprune_gates.timing.clock import Call, Clock, medians
from mmprune_gates.timing.eager import Eager
from mmprune_gates.timing.narrowing import Narrowed, at_widths, runs
from mmprune_gates.timing.onnx_ops import Onnxruntime
from mmprune_gates.timing.probe import INPUT, ON_GPU, step_of

AT_A_TIME = 8  # ops measured before the table is written again
SELECTIONS = 10
SUM, NUMBER = Fit(1.0, 0.0, []), Fit(0.0, 1.0, [])  # the sum of the ops' times, and the number of ops
SHARES = (0.1, 0.9)  # of the MACs that random selections keep
Show = Callable[[Sequence[Any], str], Iterable[Any]]  # a progress bar


class Backend(Protocol):
    """Times ops and models."""

    now: Clock

    def ms(self, ops: Sequence[Narrowed]) -> Sequence[float | None]:
        """Milliseconds of each op; None for those that cannot be measured."""

    def call(self, model: nn.Module, images: Tensor) -> Call:
        """A function that runs a model on (N, C, H, W) images."""


def backend_of(target: Target) -> Backend:
    """The backend that measures for a target."""
    return Eager(target) if target.backend == 'torch' else Onnxruntime(target)


def measure(
    table: Table, graph: ChannelGraph, backend: Backend, batch: int, save: Callable[[], None], show: Show
) -> None:
    """Measure the ops of a model that a table lacks, and add them to it.

    Args:
        table: The table.
        graph: Channel graph of the model.
        backend: Times the ops.
        batch: Images at a time.
        save: Writes the table; called now and then.
        show: Shows progress.
    """
    if not table.curves:
        on_cpu = table.facts.get('device', 'cpu') == 'cpu'
        table.step = step_of(backend.call, backend.now, INPUT if on_cpu else ON_GPU)
    by_signature = {kind_of(work).signature: work for work in graph.workload.works}
    missing = table.missing(list(by_signature))
    parts = [missing[begin : begin + AT_A_TIME] for begin in range(0, len(missing), AT_A_TIME)]
    for part in show(parts, 'ops'):
        works = [by_signature[signature] for signature in part]
        for signature, curve in zip(part, curves_of(works, backend, table.step, batch), strict=True):
            table.curves[signature] = curve
        save()


def curves_of(works: Sequence[Work], backend: Backend, step: int, batch: int) -> list[Curve]:
    """Curves of several ops, measured in turn.

    Args:
        works: The ops.
        backend: Times the ops.
        step: Widths are multiples of it.
        batch: Images at a time.
    """
    grids = [at_widths(work, step, batch) for work in works]
    rows = chain.from_iterable(grids)
    ops = [op for op in chain.from_iterable(rows) if runs(op)]
    took = dict(zip(ops, backend.ms(ops), strict=True))
    return [curve_of(grid, took) for grid in grids]


def curve_of(grid: Sequence[Sequence[Narrowed]], took: Mapping[Narrowed, float | None]) -> Curve:
    """A curve from measured times; where the op did not run, its time is taken to be proportional to reads times makes.

    Args:
        grid: The op at several widths.
        took: Milliseconds; None, or nothing, for those that did not run.
    """
    widest = grid[-1][-1]
    longest = took.get(widest) or 0.0
    per_pair = longest / (widest.reads * widest.makes)
    ms = []
    for row in grid:
        own = []
        for op in row:
            measured = took.get(op)
            own.append(per_pair * op.reads * op.makes if measured is None else measured)
        ms.append(own)
    reads = [row[0].reads for row in grid]
    makes = [op.makes for op in grid[0]]
    return Curve(reads, makes, ms)


def fit(
    table: Table,
    graph: ChannelGraph,
    model: nn.Module,
    images: Tensor,
    backend: Backend,
    cost: Latency,
    show: Show,
) -> Fit:
    """Fit the sum over ops to the latencies of randomly pruned models, by least squares of relative errors.

    Args:
        table: The table, complete.
        graph: Channel graph of the model.
        model: The model.
        images: (N, C, H, W) images that it is called with.
        backend: Times the model.
        cost: Looks up ops; its fit is changed.
        show: Shows progress.
    """
    kinds = [kind_of(work) for work in graph.workload.works]
    cost.look_up(graph, table, kinds)
    chosen = [*random_selections(graph, table.step, SELECTIONS, seed=0), graph.kept()]
    measured = torch.tensor(latencies(model, graph, chosen, images, backend, show)).double()
    sums = prices(cost.fitted(SUM), chosen)
    numbers = prices(cost.fitted(NUMBER), chosen)
    relative = torch.stack([sums, numbers], 1) / measured[:, None]
    ones = torch.ones(len(chosen), 1).double()
    solution = torch.linalg.lstsq(relative, ones).solution
    scale, overhead = solution.flatten().tolist()
    predicted = scale * sums + overhead * numbers
    pairs = zip(predicted.tolist(), measured.tolist(), strict=True)
    found = Fit(scale, overhead, list(pairs))
    table.fits[digest_of([kind.signature for kind in kinds])] = found
    cost.fitted(found)
    return found


def prices(cost: Latency, chosen: Sequence[Kept]) -> Tensor:
    """(S,) milliseconds of several selections."""
    return torch.stack([cost.price(kept.vector.double()) for kept in chosen])


def random_selections(graph: ChannelGraph, step: int, count: int, seed: int) -> list[Kept]:
    """Random selections of channels, of all sizes; some groups keep more than others.

    Args:
        graph: The channel graph.
        step: Layer widths shrink to multiples of it.
        count: Number of selections.
        seed: Seed of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    candidates = Candidates.of(graph, Limits(divisor=step))
    least = max(SHARES[0], 1.05 * candidates.least_share())
    most = max(SHARES[1], least)
    shares = torch.logspace(0, 1, count, base=most / least).double() * least
    found = []
    for share in shares.tolist():
        score = random_scores(graph, generator)
        found.append(candidates.choose(score, min(1.0, share)))
    return found


def random_scores(graph: ChannelGraph, generator: torch.Generator) -> Tensor:
    """(num_channels,) random scores; those of some groups are higher, as in pruning."""
    found = torch.randn(graph.num_channels, generator=generator)
    for group in graph.groups:
        found[group.span] += torch.randn(1, generator=generator)
    return found


def latencies(
    model: nn.Module,
    graph: ChannelGraph,
    chosen: Sequence[Kept],
    images: Tensor,
    backend: Backend,
    show: Show,
) -> list[float]:
    """Median milliseconds of slim models, measured in turn.

    Args:
        model: The whole model.
        graph: Its channel graph.
        chosen: The selection of each slim model.
        images: (N, C, H, W) images that they are called with.
        backend: Times the models.
        show: Shows progress.
    """
    calls = []
    for kept in show(chosen, 'models'):
        slim = copy.deepcopy(model)
        if not kept.vector.all():
            slim_model(slim, graph, kept)
        calls.append(backend.call(slim, images))
    return medians(calls, backend.now)
