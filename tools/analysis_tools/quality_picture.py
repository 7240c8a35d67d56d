"""The picture of a table of the quality benchmark: the metric over the MACs removed, one line for each method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmprune_gates import cli  # cures come before the imports below

# isort: split
import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from mmprune_gates.report.pictures import png_of

# Okabe and Ito's colours, which people with any kind of colour vision tell apart; lines differ in style and marker too.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
STYLES = ('-', '--', ':')
MARKERS = 'osD^vP*X'
FIRST = 3  # how many of the first methods have thick lines: ours


def draw(path: Path, task: str, figures: Mapping[str, Any]) -> None:
    """Write the picture of one task.

    Args:
        path: PNG file.
        task: Name of the task.
        figures: ``cells`` and ``metrics`` of the table.
    """
    cells = [cell for cell in figures['cells'] if cell['task'] == task]
    pruned = [cell for cell in cells if cell['share'] != 1]
    figure, axes = plt.subplots(figsize=(11, 6.5), layout='constrained')
    for cell in cells:
        if cell['share'] == 1:
            axes.axhline(cell['mean'], color='#5a5a5a', linewidth=1, linestyle=(0, (6, 3)), label=cell['method'])
    for place, method in enumerate(dict.fromkeys(cell['method'] for cell in pruned)):
        draw_line(axes, place, method, [cell for cell in pruned if cell['method'] == method])
    axes.set_xlabel('MACs removed')
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    cuts = sorted({1 - cell['share'] for cell in pruned})
    axes.set_xticks(cuts)
    axes.set_xlim(cuts[0] - 0.05, cuts[-1] + 0.05)
    axes.set_ylabel(figures['metrics'][task])
    axes.set_title(f'{task}: mean over seeds {figures["provenance"]["seeds"]}, shaded: standard deviation', fontsize=11)
    axes.grid(alpha=0.3)
    figure.legend(loc='outside right center', fontsize=8)
    cli.write_bytes(path, png_of(figure, 110))
    plt.close(figure)


def draw_line(axes: Axes, place: int, method: str, cells: list[dict[str, Any]]) -> None:
    """The line of one method, from the smallest cut to the largest.

    Args:
        axes: Where to.
        place: Which method it is, from 0; decides the look.
        method: Its name.
        cells: Its cells.
    """
    cells = sorted(cells, key=lambda cell: -cell['macs_share'])
    removed = [1 - cell['macs_share'] for cell in cells]
    low = [cell['mean'] - (cell['spread'] or 0) for cell in cells]
    high = [cell['mean'] + (cell['spread'] or 0) for cell in cells]
    colour, style = COLOURS[place % len(COLOURS)], STYLES[place // len(COLOURS) % len(STYLES)]
    look = {'linewidth': 2.6 if place < FIRST else 1.3, 'marker': MARKERS[place % len(MARKERS)], 'markersize': 5}
    axes.plot(removed, [cell['mean'] for cell in cells], style, color=colour, label=method, **look)
    axes.fill_between(removed, low, high, color=colour, alpha=0.12, linewidth=0)
