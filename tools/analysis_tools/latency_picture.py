"""The picture of a latency table for a model: predicted against measured latency, and the costliest layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmprune_gates.budget.latency import Curves, Latency, kind_of
from mmprune_gates.budget.latency_table import Curve, Table
from mmprune_gates.engine.gate_picture import BLUE, GREY, VERMILION

COSTLIEST = 5
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00')  # Okabe and Ito's
Pairs = Sequence[tuple[float, float]]  # predicted and measured milliseconds


def latency_picture(cost: Latency, table: Table, fitted: Pairs, checked: Pairs) -> Figure:
    """The picture, in two panels.

    Args:
        cost: Looks up the ops of the model.
        table: The table.
        fitted: Pairs of the selections that scale and overhead were fitted to.
        checked: Pairs of further selections.
    """
    figure = Figure(figsize=(10.5, 4.5), layout='constrained')
    left, right = figure.subplots(1, 2)
    draw_predictions(left, fitted, checked)
    draw_staircases(right, cost, table)
    return figure


def draw_predictions(axes: Axes, fitted: Pairs, checked: Pairs) -> None:
    """Predicted against measured latency of whole models."""
    largest = 1.05 * max(map(max, (*fitted, *checked)))
    ends = np.array([0.0, largest])
    axes.plot(ends, ends, color='black', linewidth=0.8)
    axes.fill_between(ends, 0.95 * ends, 1.05 * ends, color=GREY, label='within 5 %')
    for pairs, colour, label in ((fitted, BLUE, 'fitted to'), (checked, VERMILION, 'not fitted to')):
        if pairs:
            predicted, measured = np.array(pairs).T
            axes.scatter(measured, predicted, s=18, color=colour, label=f'{len(pairs)} models {label}', zorder=2)
    axes.set(xlim=(0, largest), ylim=(0, largest), xlabel='measured, ms', ylabel='predicted, ms')
    axes.set_title('Latency of randomly pruned models')
    axes.legend(loc='upper left')


def draw_staircases(axes: Axes, cost: Latency, table: Table) -> None:
    """Time of the costliest layers over the channels that they make, with all channels that they read kept."""
    for (signature, layer), colour in zip(costliest(cost, table).items(), COLOURS, strict=False):
        curve = table.curves[signature]
        widths, ms = staircase(curve, table.step)
        measured = np.array(curve.makes)
        percent = 100 / widths[-1]
        axes.plot(percent * widths, ms, color=colour, linewidth=1.5, label=layer)
        axes.scatter(percent * measured, curve.ms[-1], s=14, color=colour)
    axes.set(xlabel='channels made, %', ylabel='ms', xlim=(0, 102), ylim=(0, None))
    axes.set_title('The costliest layers; dots: measured')
    axes.legend(loc='upper left', fontsize='small')


def costliest(cost: Latency, table: Table) -> dict[str, str]:
    """Signature of the layers that take longest in total -> the first layer with it.

    Args:
        cost: Looks up the ops of the model.
        table: The table.
    """
    everything = torch.ones(cost.graph.num_channels, dtype=torch.double)
    took = cost.per_op(everything).tolist()
    totals: Counter[str] = Counter()
    layers: dict[str, str] = {}
    for work, ms in zip(cost.graph.workload.works, took, strict=True):
        signature = kind_of(work).signature
        curve = table.curves[signature]
        if len(curve.makes) > 1 and len(curve.reads) > 1:
            totals[signature] += ms
            layers.setdefault(signature, work.layer)
    return {signature: layers[signature] for signature, _ in totals.most_common(COSTLIEST)}


def staircase(curve: Curve, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Widths that a layer can make, and the milliseconds that each is priced at."""
    widths = torch.arange(1, curve.makes[-1] + 1).double()
    looked_up = Curves([curve] * len(widths), [step] * len(widths))
    all_read = torch.full_like(widths, curve.reads[-1])
    ms = looked_up(all_read, widths)
    return widths.numpy(), ms.numpy()
