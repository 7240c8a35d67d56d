"""The picture of a table of the quality benchmark: the metric over the MACs removed, one line for each method.

Each family of methods has a panel; the first method is drawn in every panel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmprune_gates import cli  # cures come before the imports below

# isort: split
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mmprune_gates.report.pictures import png_of

# Okabe and Ito's colours, which people with any kind of colour vision tell apart; lines differ in style and marker too.
OWN = '#0072B2'  # of the first method
COLOURS = ('#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
STYLES = ('-', '--', '-.')
MARKERS = 'sD^vP*X'
GREY = '#5a5a5a'
SPAN = 3.0  # times the loss of the first method is shown; points below are written as numbers
LEAST_SPAN = 4.0  # of the metric
Cells = Sequence[Mapping[str, Any]]


def draw(path: Path, task: str, figures: Mapping[str, Any]) -> None:
    """Write the picture of one task, if anything has been pruned on it.

    Args:
        path: PNG file.
        task: Name of the task.
        figures: ``cells`` and ``metrics`` of the table. Methods without a run have no point, but a place in the legend.
    """
    cells = [cell for cell in figures['cells'] if cell['task'] == task]
    pruned = [cell for cell in cells if cell['share'] != 1]
    dense = those_run(cell for cell in cells if cell['share'] == 1)
    if not those_run(pruned):
        return
    methods = list(dict.fromkeys(cell['method'] for cell in pruned))
    families = list(dict.fromkeys(cell['family'] for cell in pruned))
    columns = 1 if len(families) == 1 else 2
    rows = -(-len(families) // columns)
    figure = Figure(figsize=(1 + 6 * columns, 1 + 3.7 * rows), layout='constrained')
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    first = [cell for cell in pruned if cell['method'] == methods[0]]
    grid[0, 0].set_ylim(*limits(those_run(first), those_run(cells)))
    place_cuts(grid[0, 0], those_run(pruned))
    for axes, family in zip(grid.flat, families, strict=False):
        own = [cell for cell in pruned if cell['family'] == family and cell not in first]
        draw_panel(axes, family, first, own, dense)
    for axes in grid.flat[len(families) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel(figures['metrics'][task])
    for axes in grid[-1]:
        axes.set_xlabel('MACs removed')
    seeds = ', '.join(map(str, figures['provenance']['seeds']))
    figure.suptitle(f'{task}: mean over seeds {seeds}; bars and shade: standard deviation', fontsize=11)
    cli.write_bytes(path, png_of(figure, 110))


def those_run(cells: Iterable[Mapping[str, Any]]) -> Cells:
    """The cells with a run."""
    return [cell for cell in cells if cell['mean'] is not None]


def limits(first: Cells, cells: Cells) -> tuple[float, float]:
    """Ends of the metric's axis.

    Args:
        first: Cells of the first method; if there are none, all count.
        cells: All cells.
    """
    best = max(cell['mean'] + (cell['spread'] or 0) for cell in cells)
    worst = min(cell['mean'] - (cell['spread'] or 0) for cell in cells)
    lost = max(SPAN * (best - min(cell['mean'] for cell in first or cells)), LEAST_SPAN)
    bottom = max(worst, best - lost)
    margin = 0.04 * (best - bottom)
    return bottom - margin, best + margin


def place_cuts(axes: Axes, cells: Cells) -> None:
    """Mark the cuts of the plan on the axis of MACs."""
    cuts = sorted({1 - cell['share'] for cell in cells})
    room = 1.6 * max(0.1, cuts[-1] - cuts[0])  # for the legend
    axes.set_xticks(cuts)
    axes.set_xlim(cuts[0] - 0.1 * room, cuts[-1] + room)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def draw_panel(axes: Axes, title: str, first: Cells, cells: Cells, dense: Cells) -> None:
    """Draw one panel.

    Args:
        axes: Where to draw.
        title: Its title.
        first: Cells of the first method.
        cells: Cells of the others.
        dense: Cells of the dense model.
    """
    for cell in dense:
        axes.axhline(cell['mean'], color=GREY, linewidth=1, linestyle=(0, (6, 3)), label=cell['method'])
    draw_line(axes, first, color=OWN, linestyle='-', marker='o', linewidth=2.4)
    for place, method in enumerate(dict.fromkeys(cell['method'] for cell in cells)):
        own = [cell for cell in cells if cell['method'] == method]
        draw_line(axes, own, color=COLOURS[place % len(COLOURS)], linestyle=STYLES[place % len(STYLES)],
                  marker=MARKERS[place % len(MARKERS)], linewidth=1.3)  # fmt: skip
    write_below(axes)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(loc='center right', fontsize=7.5)


def draw_line(axes: Axes, cells: Cells, **look: Any) -> None:
    """Draw the line of one method, from the smallest cut to the largest.

    Args:
        axes: Where to draw.
        cells: Its cells.
        look: Style of the line.
    """
    label = cells[0]['method']
    cells = sorted(those_run(cells), key=lambda cell: -cell['macs_share'])
    if not cells:
        axes.plot([], [], label=f'{label} (not run)', linestyle='none')
        return
    label += ' (lacks seeds)' if any(cell['lacks'] for cell in cells) else ''
    removed = [1 - cell['macs_share'] for cell in cells]
    low = [cell['mean'] - (cell['spread'] or 0) for cell in cells]
    high = [cell['mean'] + (cell['spread'] or 0) for cell in cells]
    axes.plot(removed, [cell['mean'] for cell in cells], label=label, markersize=5, **look)
    axes.vlines(removed, low, high, color=look['color'], linewidth=1, alpha=0.5)
    axes.fill_between(removed, low, high, color=look['color'], alpha=0.12, linewidth=0)


def write_below(axes: Axes) -> None:
    """Write the values of points below the panel at its lower end, right of their cut, one above the other."""
    bottom, top = axes.get_ylim()
    heights: dict[float, float] = {}
    for line in axes.get_lines():
        for removed, mean in zip(line.get_xdata(), line.get_ydata(), strict=True):
            if mean < bottom:
                cut = round(removed, 2)
                heights[cut] = heights.get(cut, -0.03) + 0.05
                height = bottom + heights[cut] * (top - bottom)
                axes.text(removed, height, f' ↓ {mean:.1f}', color=line.get_color(), fontsize=8)
