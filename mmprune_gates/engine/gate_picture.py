"""Histograms of gate values as pictures, for reports and for the image backends of mmengine's visualizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, VERMILION, GREY = '#0072B2', '#E69F00', '#009E73', '#D55E00', '#D0D0D0'  # Okabe and Ito's, grey


def draw_histogram(axes: Axes, line: Mapping[str, Any]) -> None:
    """Number of gates in each bin of value; exact zeros are a bar of their own.

    Args:
        axes: Where to draw.
        line: A line of ``gates.jsonl``: ``iter``, ``closed`` and ``histogram``.
    """
    counts = np.array(line['histogram'])
    width = 1 / len(counts)
    centres = (np.arange(len(counts)) + 0.5) * width
    closed = -5 * width
    axes.bar(centres, counts, width * 0.9, color=BLUE)
    axes.bar(closed, line['closed'], width * 2, color=VERMILION)
    for place, count in ((closed, line['closed']), (centres[-1], counts[-1])):
        axes.annotate(f'{count}', (place, max(count, 1)), ha='center', va='bottom', fontsize=8)
    axes.set_yscale('log')
    axes.set_ylim(0.7, 3 * max(line['closed'], counts.max(), 1))
    axes.set_xticks([closed, 0, 0.5, centres[-1]], ['exactly 0', '0', '0.5', f'≥ {1 - width:.2f}'])
    axes.set(xlabel='gate value', title=f'iteration {line["iter"]}')


def histograms(lines: Sequence[Mapping[str, Any]]) -> Figure:
    """One histogram per line of ``gates.jsonl``, side by side with the same scale."""
    figure = Figure(figsize=(max(3.6 * len(lines), 5), 3.2), layout='constrained')
    panels = figure.subplots(1, len(lines), sharey=True, squeeze=False)[0]
    for axes, line in zip(panels, lines, strict=True):
        draw_histogram(axes, line)
    panels[0].set_ylabel('number of gates')
    highest = max(max(line['closed'], *line['histogram']) for line in lines)
    panels[0].set_ylim(0.7, 3 * max(highest, 1))
    return figure


def pixels(figure: Figure, dpi: int = 100) -> np.ndarray:
    """(H, W, 3) uint8, RGB."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
