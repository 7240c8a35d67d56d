"""Histograms of gate values as pictures, for reports and for the image backends of mmengine's visualizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Colours that can be told apart by colour-blind readers: Okabe and Ito's, and a grey.
BLUE, GREEN, VERMILION, GREY = '#0072B2', '#009E73', '#D55E00', '#D0D0D0'

Line = Mapping[str, Any]  # of gates.jsonl
DPI = 100


def draw_histogram(axes: Axes, line: Line) -> None:
    """Draw the number of gates in each bin of value, on a logarithmic scale; exact zeros have a bar of their own.

    Args:
        axes: Where to draw.
        line: A line of ``gates.jsonl``: ``iter``, ``closed`` and ``histogram``.
    """
    counts, closed = line['histogram'], line['closed']
    bins = len(counts)
    width = 1 / bins
    centres = (np.arange(bins) + 0.5) * width
    last = centres[-1]
    zero = -5 * width  # where the bar of exact zeros stands
    axes.bar(centres, counts, width * 0.9, color=BLUE)
    axes.bar(zero, closed, width * 2, color=VERMILION)
    write_count(axes, zero, closed)
    write_count(axes, last, counts[-1])
    axes.set_yscale('log')
    axes.set_xticks([zero, 0, 0.5, last], ['exactly 0', '0', '0.5', f'≥ {1 - width:.2f}'])
    axes.set_xlabel('gate value')
    axes.set_title(f'iteration {line["iter"]}')


def write_count(axes: Axes, place: float, count: int) -> None:
    """Write the number of gates above a bar."""
    top = max(count, 1)
    axes.annotate(str(count), (place, top), ha='center', va='bottom', fontsize=8)


def histograms(lines: Sequence[Line]) -> Figure:
    """One histogram per line of ``gates.jsonl``, side by side with the same scale."""
    number = len(lines)
    width = max(3.6 * number, 5)
    figure = Figure(figsize=(width, 3.2), layout='constrained')
    panels = figure.subplots(1, number, sharey=True, squeeze=False)[0]
    highest = 1
    for axes, line in zip(panels, lines, strict=True):
        draw_histogram(axes, line)
        highest = max(highest, line['closed'], *line['histogram'])
    first = panels[0]
    first.set_ylabel('number of gates')
    first.set_ylim(0.7, 3 * highest)
    return figure


def pixels(figure: Figure) -> np.ndarray:
    """(H, W, 3) uint8, RGB pixels of a figure."""
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = np.asarray(canvas.buffer_rgba())
    return image[..., :3].copy()
