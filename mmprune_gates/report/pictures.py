"""The pictures of a report; colours can be told apart by colour-blind readers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mmprune_gates.engine.gate_picture import BLUE, GREEN, GREY, VERMILION
from mmprune_gates.report.network import Network, Width

ROW = 0.17  # height of a horizontal bar, inches
WIDTH = 10.5  # of a picture as wide as the page, inches


def draw_gates(axes: Axes, history: Sequence[dict[str, Any]]) -> None:
    """Share of gates in each bin of value, over the iterations; exact zeros are a row of their own.

    Args:
        axes: Where to draw.
        history: Lines of ``gates.jsonl``.
    """
    iters = [line['iter'] for line in history]
    counts = np.array([[line['closed'], *line['histogram']] for line in history], float).T
    shares = counts / counts.sum(0)
    bins = len(shares) - 1
    # The first row is drawn below zero, so that exactly zero can be told from small.
    edges = np.concatenate([[-2 / bins], np.linspace(0, 1, bins + 1)])
    times = np.concatenate([[0], iters])
    mesh = axes.pcolormesh(times, edges, shares, norm='log', vmin=1e-3, vmax=1, cmap='viridis')
    axes.axhline(0, color='white', linewidth=1)
    axes.set(xlabel='iteration', ylabel='gate value', title='Gates over training\n(below the line: exactly 0)')
    axes.figure.colorbar(mesh, ax=axes, label='share of gates')


def gates_over_time(history: Sequence[dict[str, Any]]) -> Figure:
    """Values of the gates over the iterations, and the share that is closed."""
    figure = Figure(figsize=(WIDTH, 3.6), layout='constrained')
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    draw_gates(left, history)
    closed = [100 * line['closed'] / (line['closed'] + sum(line['histogram'])) for line in history]
    right.plot([line['iter'] for line in history], closed, color=VERMILION, marker='.', markersize=3)
    right.set(xlabel='iteration', ylabel='gates exactly 0 [%]', title='Closed gates', ylim=(0, 100))
    right.set_xlim(left=0)
    right.grid(alpha=0.3)
    return figure


def macs_over_time(train: Sequence[dict[str, float]], target: float | None, slim: float | None) -> Figure:
    """Share of MACs over the iterations, the target, and what the slim model has.

    Args:
        train: Scalars with ``iter`` and ``macs_ratio``.
        target: MACs to keep / MACs of the whole model, or None.
        slim: The same of the slim model, or None.
    """
    figure = Figure(figsize=(WIDTH, 3.2), layout='constrained')
    axes = figure.subplots()
    points = [(line['iter'], 100 * line['macs_ratio']) for line in train if 'macs_ratio' in line]
    axes.plot(*zip(*points, strict=True), color=BLUE, label='gated model, by gate values')
    if target is not None:
        axes.axhline(100 * target, color=VERMILION, linestyle='--', label=f'target, {target:.1%}')
    if slim is not None:
        axes.plot(points[-1][0], 100 * slim, color=GREEN, marker='D', linestyle='', label=f'slim model, {slim:.1%}')
    axes.set(xlabel='iteration', ylabel='MACs [% of dense]', title='MACs against the target', ylim=(0, 105))
    axes.set_xlim(left=0)
    axes.legend(loc='upper right')
    axes.grid(alpha=0.3)
    return figure


def losses(train: Sequence[dict[str, float]], metric: str, points: Sequence[tuple[int, float]]) -> Figure:
    """Training loss over the iterations, and the validation metric below it if it was measured more than once.

    Args:
        train: Scalars with ``iter`` and ``loss``.
        metric: Name of the metric.
        points: Iteration and metric of each validation.
    """
    rows = 2 if len(points) > 1 else 1
    figure = Figure(figsize=(WIDTH, 2.6 * rows), layout='constrained')
    panels = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    panels[0].plot([line['iter'] for line in train], [line['loss'] for line in train], color=BLUE, linewidth=1)
    panels[0].set(ylabel='loss', title='Training loss')
    panels[0].set_ylim(bottom=0)
    panels[0].set_xlim(left=0)
    if rows == 2:
        panels[1].plot(*zip(*points, strict=True), color=GREEN, marker='o', markersize=4)
        panels[1].annotate(f'{points[-1][1]:.2f}', points[-1], textcoords='offset points', xytext=(-4, -14), ha='right')
        panels[1].set(ylabel=metric, title=f'Validation, {metric}')
        panels[1].margins(y=0.25)
    panels[-1].set_xlabel('iteration')
    for axes in panels:
        axes.grid(alpha=0.3)
    return figure


def draw_widths(axes: Axes, names: Sequence[str], before: Sequence[int], after: Sequence[int]) -> None:
    """One bar of kept channels per name, the dense width drawn behind it."""
    places = np.arange(len(names))
    axes.barh(places, before, color=GREY, label='dense')
    axes.barh(places, after, color=BLUE, height=0.6, label='kept')
    axes.set_yticks(places, names, fontsize=7)
    axes.set_ylim(len(names) - 0.4, -0.6)


def layers(widths: Sequence[Width], columns: int = 3) -> Figure:
    """Channels kept per layer, one panel per stage."""
    stages = [(stage, list(inside)) for stage, inside in groupby(widths, lambda width: width.stage)]
    stacks = columns_of(stages, columns)
    rows = max(sum(room(inside) for _, inside in stack) for stack in stacks)
    figure = Figure(figsize=(WIDTH, ROW * rows + 0.4), layout='constrained')
    figure.supxlabel('output channels (grey: dense, blue: kept)', fontsize=9)
    for part, stack in zip(figure.subfigures(1, len(stacks), squeeze=False)[0], stacks, strict=True):
        heights = [room(inside) for _, inside in stack]
        spare = max(rows - sum(heights), 0.01)
        grid = part.add_gridspec(len(stack) + 1, 1, height_ratios=[*heights, spare])
        for place, (stage, inside) in zip(grid, stack, strict=False):
            draw_stage(part.add_subplot(place), stage, inside)
    return figure


def draw_stage(axes: Axes, stage: str, widths: Sequence[Width]) -> None:
    """The layers of a stage, with their numbers of channels beside the bars."""
    draw_widths(axes, [label(width) for width in widths], [w.before for w in widths], [w.after for w in widths])
    for place, width in enumerate(widths):
        text = f'{width.after} of {width.before}' if width.after else f'gone ({width.before})'
        beside = dict(xycoords=('axes fraction', 'data'), xytext=(3, 0), textcoords='offset points', va='center')
        axes.annotate(text, (1, place), fontsize=6.5, **beside)
    axes.set_title(stage, fontsize=9, loc='left')
    axes.tick_params(axis='x', labelsize=7)


def room(inside: Sequence[Width]) -> int:
    """Height of the panel of a stage, in bars: its layers, title and axis."""
    return len(inside) + 4


def columns_of(stages: Sequence[tuple[str, list]], columns: int) -> list[list[tuple[str, list]]]:
    """Stages in order, cut into at most so many columns of similar height."""
    total = sum(room(inside) for _, inside in stages)
    stacks: list[list[tuple[str, list]]] = [[]]
    filled = 0
    for stage, inside in stages:
        middle = filled + room(inside) / 2
        if stacks[-1] and middle > total * len(stacks) / columns and len(stacks) < columns:
            stacks.append([])
        stacks[-1].append((stage, inside))
        filled += room(inside)
    return stacks


def label(width: Width) -> str:
    """Path of a layer below its stage."""
    return width.name.removeprefix(f'{width.stage}.').removesuffix('.conv')


def costs(network: Network) -> Figure:
    """MACs of each stage before and after, with its share of all of them."""
    stages = list(network.costs)
    before = np.array([network.costs[stage][0] for stage in stages])
    after = np.array([network.costs[stage][1] for stage in stages])
    unit, name = (1e9, 'G') if before.sum() >= 1e10 else (1e6, 'M')
    figure = Figure(figsize=(WIDTH, 0.34 * len(stages) + 1.3), layout='constrained')
    axes = figure.subplots()
    places = np.arange(len(stages))
    axes.barh(places, before / unit, color=GREY, label=f'before: {before.sum() / unit:,.1f} {name}')
    axes.barh(places, after / unit, color=BLUE, height=0.5, label=f'after: {after.sum() / unit:,.1f} {name}')
    for place, whole, left in zip(places, before, after, strict=True):
        text = f'{whole / before.sum():.0%} → {left / max(after.sum(), 1):.0%}'
        axes.annotate(text, (whole / unit, place), xytext=(4, 0), textcoords='offset points', va='center', fontsize=8)
    axes.set_yticks(places, stages)
    axes.set_ylim(len(stages) - 0.4, -0.6)
    axes.margins(x=0.12)
    axes.set(xlabel=f'MACs [{name}]', title='MACs per stage (beside the bars: share of all, before → after)')
    axes.legend(loc='best')
    return figure


def confusion(matrix: np.ndarray, names: Sequence[str]) -> Figure:
    """Confusion matrix, a row per true class, in percent of the row; counts are written where there is room.

    Args:
        matrix: (K, K) counts, true class by predicted class.
        names: K names.
    """
    size = min(max(3.5, 0.42 * len(names) + 1.5), WIDTH)
    figure = Figure(figsize=(size + 1, size), layout='constrained')
    axes = figure.subplots()
    shares = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap='cividis', vmin=0, vmax=100)
    for row, column in zip(*matrix.nonzero(), strict=True):
        colour = 'black' if shares[row, column] > 55 else 'white'
        axes.text(column, row, f'{matrix[row, column]}', ha='center', va='center', fontsize=8, color=colour)
    places = np.arange(len(names))
    axes.set_xticks(places, names, rotation=90 if max(map(len, names)) > 3 else 0, fontsize=8)
    axes.set_yticks(places, names, fontsize=8)
    axes.set(xlabel='predicted class', ylabel='true class')
    figure.colorbar(image, ax=axes, label='share of the true class [%]')
    return figure


def side_by_side(rows: Sequence[dict[str, np.ndarray]], legend: dict[str, Sequence[float]]) -> Figure:
    """A row of pictures per image, with a title above each column.

    Args:
        rows: For each image, title -> (H, W, 3) uint8.
        legend: Name of a class -> its colour, three numbers in [0, 1].
    """
    columns = list(rows[0])
    height, width = rows[0][columns[0]].shape[:2]
    cell = (WIDTH - 1.5) / len(columns)
    tall = min(cell * height / width, 3.5) * len(rows) + 0.5
    figure = Figure(figsize=(WIDTH, tall), layout='constrained')
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for panels, row in zip(grid, rows, strict=True):
        for axes, title in zip(panels, columns, strict=True):
            axes.imshow(row[title])
            axes.set_axis_off()
    for axes, title in zip(grid[0], columns, strict=True):
        axes.set_title(title, fontsize=10)
    patches = [Rectangle((0, 0), 1, 1, facecolor=colour, edgecolor='grey') for colour in legend.values()]
    figure.legend(patches, list(legend), loc='outside right center', fontsize=8)
    return figure
