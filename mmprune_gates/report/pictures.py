"""The pictures of a report; colours can be told apart by colour-blind readers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure, FigureBase
from matplotlib.patches import Patch

from mmprune_gates.engine.gate_picture import BLUE, GREEN, GREY, VERMILION, Line
from mmprune_gates.report.network import Network, Width

ROW = 0.17  # height of a horizontal bar, inches
WIDTH = 10.5  # of a picture as wide as the page, inches
COLUMNS = 3  # of panels with the layers of a stage

Stage = Sequence[Width]  # the layers of one
Points = Sequence[tuple[int, float]]  # iterations, and what was measured there


@dataclass(frozen=True)
class Drawn:
    """Content of a section of the page: a picture or a list, with a sentence above it."""

    note: str = ''
    figure: Figure | None = None
    items: tuple[str, ...] = ()


def png_of(figure: Figure, dpi: float) -> bytes:
    """A picture as the contents of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=dpi)
    return buffer.getvalue()


def wide(height: float) -> Figure:
    """An empty picture as wide as the page; ``height`` in inches."""
    return Figure(figsize=(WIDTH, height), layout='constrained')


def values_of(lines: Sequence[Line], key: str) -> np.ndarray:
    """(N,) the values of N lines under a key."""
    return np.array([line[key] for line in lines])


def shares_of(history: Sequence[Line]) -> np.ndarray:
    """(1 + bins, N) share of the gates that are exactly zero, and of those in each bin of value, at N times."""
    closed = values_of(history, 'closed')
    others = values_of(history, 'histogram')
    counts = np.column_stack([closed, others])
    return counts.T / counts.sum(1)


def from_zero(axes: Axes) -> None:
    """Let the horizontal axis, that of iterations, start at 0, and draw a grid."""
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)


def draw_gates(axes: Axes, history: Sequence[Line]) -> None:
    """Draw the share of gates in each bin of value, over the iterations; exact zeros have a row of their own.

    Args:
        axes: Where to draw.
        history: Lines of ``gates.jsonl``.
    """
    shares = shares_of(history)
    bins = len(shares) - 1
    edges = np.linspace(0, 1, bins + 1)
    below = -2 / bins  # where the row of exact zeros begins, so that they can be told from small values
    iters = values_of(history, 'iter')
    times = np.append(0, iters)
    mesh = axes.pcolormesh(times, np.append(below, edges), shares, norm='log', vmin=1e-3, vmax=1, cmap='viridis')
    axes.axhline(0, color='white', linewidth=1)
    axes.set(xlabel='iteration', ylabel='gate value', title='Gates over training\n(below the line: exactly 0)')
    axes.figure.colorbar(mesh, ax=axes, label='share of gates')


def gates_over_time(history: Sequence[Line]) -> Figure:
    """Values of the gates over the iterations, and the share that is closed."""
    figure = wide(3.6)
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    draw_gates(left, history)
    iters = values_of(history, 'iter')
    closed = 100 * shares_of(history)[0]
    right.plot(iters, closed, color=VERMILION, marker='.', markersize=3)
    right.set(xlabel='iteration', ylabel='gates exactly 0 [%]', title='Closed gates', ylim=(0, 100))
    from_zero(right)
    return figure


def macs_over_time(lines: Sequence[Line], target: float | None, slim: float | None) -> Figure:
    """Share of MACs over the iterations, the target, and the share of the slim model.

    Args:
        lines: Scalars with ``iter`` and ``macs_ratio``.
        target: MACs to keep / MACs of the whole model, or None.
        slim: The same of the slim model, or None.
    """
    figure = wide(3.2)
    axes = figure.subplots()
    iters = values_of(lines, 'iter')
    percent = 100 * values_of(lines, 'macs_ratio')
    axes.plot(iters, percent, color=BLUE, label='gated model, by gate values')
    if target is not None:
        axes.axhline(100 * target, color=VERMILION, linestyle='--', label=f'target, {target:.1%}')
    if slim is not None:
        axes.plot(iters[-1], 100 * slim, color=GREEN, marker='D', linestyle='', label=f'slim model, {slim:.1%}')
    axes.set(xlabel='iteration', ylabel='MACs [% of dense]', title='MACs against the target', ylim=(0, 105))
    from_zero(axes)
    axes.legend(loc='upper right')
    return figure


def losses(train: Sequence[Line], metric: str, points: Points) -> Figure:
    """Training loss over the iterations, and the validation metric below it if it was measured more than once.

    Args:
        train: Scalars with ``iter`` and ``loss``.
        metric: Name of the metric.
        points: Iteration and metric of each validation.
    """
    rows = 2 if len(points) > 1 else 1
    figure = wide(2.6 * rows)
    panels = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    first = panels[0]
    last = panels[-1]
    iters = values_of(train, 'iter')
    loss = values_of(train, 'loss')
    first.plot(iters, loss, color=BLUE, linewidth=1)
    first.set(ylabel='loss', title='Training loss')
    first.set_ylim(bottom=0)
    from_zero(first)
    if rows == 2:
        draw_metric(last, metric, points)
    last.set_xlabel('iteration')
    return figure


def draw_metric(axes: Axes, metric: str, points: Points) -> None:
    """Draw a metric over the iterations, with its last value in figures."""
    iters, values = zip(*points, strict=True)
    axes.plot(iters, values, color=GREEN, marker='o', markersize=4)
    text = f'{values[-1]:.2f}'
    axes.annotate(text, points[-1], (-4, -14), textcoords='offset points', ha='right')
    axes.set(ylabel=metric, title=f'Validation, {metric}')
    axes.margins(y=0.25)
    axes.grid(alpha=0.3)


def draw_widths(axes: Axes, names: Sequence[str], before: Sequence[int], after: Sequence[int]) -> None:
    """Draw one bar of kept channels per name, in front of the dense width."""
    draw_bars(axes, before, after, 0.6)
    axes.set_yticks(range(len(names)), names, fontsize=7)


def draw_bars(axes: Axes, before: Sequence[float], after: Sequence[float], height: float) -> BarContainer:
    """Draw horizontal bars at 0, 1, 2 and so on, downwards: grey ones, and blue ones of some height in front of them.

    Returns:
        The grey ones.
    """
    number = len(before)
    places = range(number)
    bars = axes.barh(places, before, color=GREY, label='dense')
    axes.barh(places, after, color=BLUE, height=height, label='kept')
    axes.set_ylim(number - 0.4, -0.6)
    return bars


def layers(widths: Sequence[Width]) -> Figure:
    """Channels kept per layer, one panel per stage."""
    stages = [list(stage) for _, stage in groupby(widths, attrgetter('stage'))]
    columns = columns_of(stages)
    heights = [sum(map(room, column)) for column in columns]
    rows = max(heights)
    figure = wide(ROW * rows + 0.4)
    figure.supxlabel('output channels (grey: dense, blue: kept)', fontsize=9)
    parts = figure.subfigures(1, len(columns), squeeze=False)[0]
    for part, column in zip(parts, columns, strict=True):
        draw_column(part, column, rows)
    return figure


def columns_of(stages: Sequence[Stage]) -> list[list[Stage]]:
    """Stages in order, cut into at most :data:`COLUMNS` columns of similar height."""
    total = sum(map(room, stages))
    columns: list[list[Stage]] = [[]]
    filled = 0
    for stage in stages:
        height = room(stage)
        middle = filled + height / 2
        end = total * len(columns) / COLUMNS  # of the column that is being filled
        if columns[-1] and middle > end:
            columns.append([])
        columns[-1].append(stage)
        filled += height
    return columns


def room(stage: Stage) -> int:
    """Height of the panel of a stage, in bars: its layers, title and axis."""
    return len(stage) + 4


def draw_column(figure: FigureBase, stages: Sequence[Stage], rows: int) -> None:
    """Panels of stages, one below the other, on a part of a figure with the height of ``rows`` bars."""
    heights: list[float] = [room(stage) for stage in stages]
    spare = rows - sum(heights)
    heights.append(max(spare, 0.01))
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    for number, stage in enumerate(stages):
        axes = figure.add_subplot(grid[number])
        draw_stage(axes, stage)


def draw_stage(axes: Axes, stage: Stage) -> None:
    """The layers of a stage, with their numbers of channels beside the bars."""
    title = stage[0].stage
    before = [width.before for width in stage]
    after = [width.after for width in stage]
    names = []
    beside = ('axes fraction', 'data')
    for place, width in enumerate(stage):
        name = width.name.removeprefix(f'{title}.')
        names.append(name.removesuffix('.conv'))
        text = f'{width.after} of {width.before}'
        if not width.after:
            text = f'gone ({width.before})'
        axes.annotate(text, (1, place), (3, 0), beside, 'offset points', va='center', fontsize=6.5)
    draw_widths(axes, names, before, after)
    axes.set_title(title, fontsize=9, loc='left')
    axes.tick_params(axis='x', labelsize=7)


def costs(network: Network) -> Figure:
    """MACs of each stage before and after, with its share of all of them."""
    stages = list(network.costs)
    pairs = np.array(list(network.costs.values()))
    totals = pairs.sum(0)
    texts = []
    for old, new in pairs / np.maximum(totals, 1):
        texts.append(f'{old:.0%} → {new:.0%}')
    name, unit = 'M', 1e6
    if totals[0] >= 1e10:
        name, unit = 'G', 1e9
    before, after = pairs.T / unit
    all_before, all_after = totals / unit
    figure = wide(0.34 * len(stages) + 1.3)
    axes = figure.subplots()
    bars = draw_bars(axes, before, after, 0.5)
    axes.bar_label(bars, texts, padding=4, fontsize=8)
    axes.set_yticks(range(len(stages)), stages)
    axes.margins(x=0.12)
    axes.set(xlabel=f'MACs [{name}]', title='MACs per stage (beside the bars: share of all, before → after)')
    legend = [f'before: {all_before:,.1f} {name}', f'after: {all_after:,.1f} {name}']
    axes.legend(legend, loc='best')
    return figure


def confusion(matrix: np.ndarray, names: Sequence[str]) -> Figure:
    """Confusion matrix, a row per true class, in percent of the row; non-zero counts are written in the cells.

    Args:
        matrix: (K, K) counts, true class by predicted class.
        names: K names.
    """
    size = 0.42 * len(names) + 1.5
    size = np.clip(size, 3.5, WIDTH)
    figure = Figure(figsize=(size + 1, size), layout='constrained')
    axes = figure.subplots()
    totals = matrix.sum(1, keepdims=True)
    percent = 100 * matrix / np.maximum(totals, 1)
    image = axes.imshow(percent, cmap='cividis', vmin=0, vmax=100)
    for row, column in np.argwhere(matrix):
        colour = 'black' if percent[row, column] > 55 else 'white'
        count = str(matrix[row, column])
        axes.text(column, row, count, ha='center', va='center', fontsize=8, color=colour)
    places = range(len(names))
    longest = max(map(len, names))
    axes.set_xticks(places, names, rotation=90 if longest > 3 else 0, fontsize=8)
    axes.set_yticks(places, names, fontsize=8)
    axes.set(xlabel='predicted class', ylabel='true class')
    figure.colorbar(image, ax=axes, label='share of the true class [%]')
    return figure


def side_by_side(rows: Sequence[dict[str, np.ndarray]], legend: dict[str, Any]) -> Figure:
    """A row of pictures per image, with a title above each column.

    Args:
        rows: For each image, title -> (H, W, 3) uint8.
        legend: Name of a class -> its colour, three numbers in [0, 1].
    """
    titles = list(rows[0])
    first = rows[0][titles[0]]
    height, width, _ = first.shape
    cell = (WIDTH - 1.5) / len(titles)
    row_height = min(cell * height / width, 3.5)
    figure = wide(row_height * len(rows) + 0.5)
    grid = figure.subplots(len(rows), len(titles), squeeze=False)
    for panels, row in zip(grid, rows, strict=True):
        for axes, title in zip(panels, titles, strict=True):
            axes.imshow(row[title])
            axes.set_axis_off()
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=10)
    patches = [Patch(facecolor=colour, edgecolor='grey') for colour in legend.values()]
    figure.legend(patches, list(legend), loc='outside right center', fontsize=8)
    return figure
