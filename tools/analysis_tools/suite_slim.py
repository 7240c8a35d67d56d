"""The page on slim models: latency and throughput at several cuts, relative to the dense model and the ratio of MACs.

Channels are chosen at random, some groups losing more than others, as in pruning; all divisors have the same scores.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from mmprune_gates import cli  # noqa: F401  (cures come before the imports below)

# isort: split
import numpy as np
import torch
from benchmark import DTYPES, time_ratio
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from suite_cells import FULL, GPU, QUICK, SEED, Cell, Found, Page, Table, error_bars, in_turn
from suite_models import MOBILENET, R50, dense_model, images_of
from torch import nn

from mmprune_gates import slim_model
from mmprune_gates.budget import Candidates, Limits
from mmprune_gates.budget.latency_table import BACKENDS, Target
from mmprune_gates.channels import ChannelGraph
from mmprune_gates.engine.builders import trace
from mmprune_gates.report.pictures import BLUE, GREEN, GREY, VERMILION, wide
from mmprune_gates.timing.table import backend_of, random_scores

CUTS = (0.5, 0.7, 0.85, 0.95)  # shares of the MACs that go
DIVISORS: dict[int | str, str] = {1: BLUE, 'auto': VERMILION, 8: GREEN, 16: GREY}
MARKERS = dict(zip(DIVISORS, 'o^sD', strict=True))
SIZES = {R50: 128, MOBILENET: 224}
ROUNDS = {1: 12, 8: 5}  # of a batch
TARGET = 0.8  # of the ratio of the MACs
NOTES = (
    'Each cell: speed-up over the dense model, median over rounds in which dense and slim models run in turn (its '
    'share of what the MACs fell by), images per second. Latency: images of the batch / images per second. One model '
    'at each cut, its channels chosen at random with one seed: others of the same MACs may be faster or slower.'
)


@cache
def whole(model: str, shape: tuple[int, ...]) -> tuple[nn.Module, ChannelGraph]:
    """A model and its channel graph."""
    dense = dense_model(model)
    return dense, trace(dense, shape)


def slim_model_of(model: str, shape: tuple[int, ...], divisor: int | str, cut: float) -> tuple[nn.Module, float] | None:
    """A slim model, and the dense model's MACs over its own; None if the divisor does not allow the cut.

    Args:
        model: Name of the dense model, or its config.
        shape: (C, H, W) of images.
        divisor: As in :class:`~mmprune_gates.budget.Limits`.
        cut: Share of the MACs to remove.
    """
    dense, graph = whole(model, shape)
    scores = random_scores(graph, torch.Generator().manual_seed(SEED))
    try:
        kept = Candidates.of(graph, Limits(divisor=divisor)).choose(scores, 1 - cut)
    except ValueError:  # even with all closed that may close, it costs more
        return None
    slim = copy.deepcopy(dense)
    slim_model(slim, graph, kept)
    return slim, graph.macs() / graph.macs(kept)


def measure(
    model: str, size: int, backend: str, batch: int, divisor: int | str, cuts: Sequence[float], rounds: int,
    device: str, dtype: str,
) -> dict[str, Any]:  # fmt: skip
    """Times of a dense model and of slim ones, in turn.

    Args:
        model: Its name, or a config.
        size: Height and width of images.
        backend: ``torch`` or ``onnxruntime``.
        batch: Images at a time.
        divisor: As in :class:`~mmprune_gates.budget.Limits`.
        cuts: Shares of the MACs to remove.
        rounds: How often each runs.
        device: ``cpu`` or ``cuda``.
        dtype: ``fp32`` or ``bf16``, of weights and images.
    """
    shape = (3, size, size)
    found = {cut: slim_model_of(model, shape, divisor, cut) for cut in cuts}
    slims = {cut: own for cut, own in found.items() if own is not None}
    models = [whole(model, shape)[0], *(slim for slim, _ in slims.values())]
    runner = backend_of(Target(backend, device, 1, batch))
    precision = DTYPES[dtype] or torch.float32
    images = images_of(batch, (size, size)).to(precision)
    calls = [runner.call(copy.deepcopy(one).to(precision), images) for one in models]
    dense, *others = (times[1:] for times in in_turn(calls, runner.now, 1 + rounds))  # the first round warms up
    cells = []
    for (cut, (_, macs_ratio)), own in zip(slims.items(), others, strict=True):
        speed_up = time_ratio(dense, own)
        share = speed_up['median'] / macs_ratio
        cells.append({'cut': cut, 'macs_ratio': macs_ratio, 'speed_up': speed_up, 'share': share, **speed(own, batch)})
    return {'dense': speed(dense, batch), 'slim': cells}


def speed(times: Sequence[float], batch: int) -> dict[str, float]:
    """Latency and throughput."""
    return {'ms': 1e3 * median(times), 'images_per_second': batch / median(times)}


def cell(model: str, size: int, backend: str, batch: int, divisor: int | str, **changes: Any) -> Cell:
    """The cell of a model and a divisor, on a backend, at a batch size."""
    defaults = {'cuts': CUTS, 'rounds': ROUNDS.get(batch, 20), 'device': 'cpu', 'dtype': 'fp32'}
    own = {'model': model, 'size': size, 'backend': backend, 'batch': batch, 'divisor': divisor, **defaults, **changes}
    return Cell(f'{Path(model).stem}-{backend}-{own["dtype"]}-batch{batch}-divisor{divisor}', measure, own)


def full() -> list[Cell]:
    """Two models, two backends, two batch sizes, four divisors."""
    kinds = product(SIZES, BACKENDS, ROUNDS, DIVISORS)
    return [cell(model, SIZES[model], backend, batch, divisor) for model, backend, batch, divisor in kinds]


def quick() -> list[Cell]:
    """One cut of each model on each backend, with small images."""
    kinds = product(SIZES, BACKENDS)
    return [cell(model, 64, backend, 1, 8, cuts=(0.7,), rounds=5) for model, backend in kinds]


def on_gpu() -> list[Cell]:
    """DeepLabV3+-R50 at its crop size, in both precisions."""
    kinds = product(('fp32', 'bf16'), (1, 'auto'))
    return [cell(R50, 512, 'torch', 16, divisor, device='cuda', dtype=dtype) for dtype, divisor in kinds]


def tables(found: Found) -> dict[str, Table]:
    """A table for each model: a row for each backend, batch size and divisor, a column for each cut."""
    models = dict.fromkeys(own['model'] for own in found)
    return {f'{model}, dense over slim': table([own for own in found if own['model'] == model]) for model in models}


def table(found: Found) -> Table:
    """The table of one model."""
    cuts = sorted({cut for own in found for cut in own['cuts']})
    head = ['backend', 'batch', 'divisor', 'dense', *(f'{cut:.0%} of the MACs gone' for cut in cuts)]
    rows = []
    for own in found:
        there = {slim['cut']: text_of(slim) for slim in own['slim']}
        dense = f'{own["dense"]["ms"]:.1f} ms, {own["dense"]["images_per_second"]:.1f}/s'
        texts = [there.get(cut, 'not allowed') for cut in cuts]
        rows.append([f'{own["backend"]} {own["dtype"]}', str(own['batch']), str(own['divisor']), dense, *texts])
    return head, rows


def text_of(slim: Mapping[str, Any]) -> str:
    """A slim model's speed in words."""
    return f'**{slim["speed_up"]["median"]:.2f}** ({slim["share"]:.2f}), {slim["images_per_second"]:.1f}/s'


def picture(found: Found) -> Figure:
    """Speed-up over the ratio of MACs: a row of panels for each model, a column for each backend and batch size."""
    models = list(dict.fromkeys(own['model'] for own in found))
    kinds = list(dict.fromkeys(kind_of(own) for own in found))
    figure = wide(2.6 * len(models) + 0.8)
    grid = figure.subplots(len(models), len(kinds), sharex=True, sharey=True, squeeze=False)
    for own in found:
        draw(grid[models.index(own['model']), kinds.index(kind_of(own))], own)
    for axes in grid.flat:
        axes.axhline(TARGET, color='black', linewidth=0.8, linestyle='--')
        axes.set_xticks(range(len(CUTS)), [f'{cut:.0%}' for cut in CUTS])
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    for axes, model in zip(grid[:, 0], models, strict=True):
        axes.set_ylabel(f'{model}\nspeed-up / ratio of MACs')
    for axes, kind in zip(grid[0], kinds, strict=True):
        axes.set_title(kind)
    for axes in grid[-1]:
        axes.set_xlabel('MACs gone')
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc='outside lower center', ncols=len(DIVISORS))
    return figure


def kind_of(own: Mapping[str, Any]) -> str:
    """Backend, precision and batch size of a cell."""
    return f'{own["backend"]}, {own["dtype"]}, batch {own["batch"]}'


def draw(axes: Axes, own: Mapping[str, Any]) -> None:
    """Draw the line of a cell, with quartiles."""
    divisor = own['divisor']
    shift = 0.12 * (list(DIVISORS).index(divisor) - 1.5)  # so that bars do not hide each other
    places = [CUTS.index(slim['cut']) + shift for slim in own['slim']]
    medians, spread = error_bars([slim['speed_up'] for slim in own['slim']])
    ratios = [slim['macs_ratio'] for slim in own['slim']]
    shares, bars = np.divide(medians, ratios), np.divide(spread, ratios)
    look = {'color': DIVISORS[divisor], 'marker': MARKERS[divisor], 'markersize': 4, 'linewidth': 1.2}
    axes.errorbar(places, shares, yerr=bars, label=f'divisor {divisor}', **look)


PAGE = Page('slim', {FULL: full, QUICK: quick, GPU: on_gpu}, tables, picture, NOTES)
