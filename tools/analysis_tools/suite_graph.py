"""The page on the channel graph: time until a model's groups are known, relative to ``torch.export`` alone.

Timed in turn: ``torch.export``, the graph without the rehearsal on the model's code, the graph with it, and the groups
of Torch-Pruning's ``DependencyGraph`` (the extra ``benchmark``). All of the inference pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

from mmprune_gates import cli  # noqa: F401  (cures come before the imports below)

# isort: split
import torch
from benchmark import time_ratio
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from quality_peers import package
from suite_cells import FULL, QUICK, Cell, Found, Page, Table, in_turn, with_quartiles
from suite_models import CONFIG_OF, dense_model, images_of
from torch import Tensor, nn

from mmprune_gates import trace_channels
from mmprune_gates.channels.trace import Captured
from mmprune_gates.engine.forwards import inference_forward
from mmprune_gates.report.pictures import BLUE, GREEN, VERMILION, wide
from mmprune_gates.timing.clock import clock_of

TARGET = 2  # times torch.export
SIZES = {'VGG-16': 32, 'ResNet-56': 32}  # of images; of other models:
SIZE = 128
CHAIN = 'ResNet-56'  # whose depth and width are varied
DEPTHS = (20, 32, 56, 110)
WIDTHS = (16, 32, 64, 128)
ROUNDS = 5
EXPORT, READ, WHOLE, PEER = 'torch.export', 'without rehearsal', 'with rehearsal', 'Torch-Pruning'
LOOKS = {EXPORT: ('black', 'o'), READ: (GREEN, 's'), WHOLE: (BLUE, 'D'), PEER: (VERMILION, 'v')}
NOTES = (
    'Processor time, median of rounds in which all four take their turn; ratios (with quartiles) are those of rounds. '
    'Rehearsal: the difference of the two times of the graph. Torch-Pruning runs the model instead of exporting it; '
    'what it finds was not compared here. Exponent: slope of the time over layers or channels, both in logarithms; 1 '
    'is linear.'
)


def peer_groups(model: nn.Module, images: Tensor) -> int:
    """Number of groups that Torch-Pruning finds."""
    graph = package().DependencyGraph().build_dependency(model, images, inference_forward)
    return len(list(graph.get_all_groups()))


@cache
def warm_up() -> None:
    """Load what the first export of a process loads."""
    torch.export.export(nn.Linear(1, 1), (torch.ones(1, 1),), strict=False)


def measure(model: str, size: int, rounds: int, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Seconds of each way to the groups, measured in turn.

    Args:
        model: Name of a model, or a config.
        size: Height and width of images.
        rounds: Number of rounds.
        options: Changes of the config.
    """
    warm_up()
    net = dense_model(model, options)
    images = images_of(2, (size, size))
    ways: dict[str, Callable[[], Any]] = {
        EXPORT: partial(torch.export.export, Captured(net, inference_forward), (images,), strict=False),
        READ: partial(trace_channels, net, images, inference_forward, rehearsal=False),
        WHOLE: partial(trace_channels, net, images, inference_forward),
        PEER: partial(peer_groups, net, images),
    }
    graph = ways[WHOLE]()
    figures: dict[str, Any] = {'layers': len(graph.layers), 'groups': len(graph.free_channels)}
    package()  # one that is missing is no failure of the peer
    try:
        figures['peer_groups'] = ways[PEER]()
    except Exception as error:  # whatever it stumbles over
        figures['peer_fails'] = f'{type(error).__name__}: {error}'[:200]
        del ways[PEER]
    now = clock_of('cpu', torch.get_num_threads())
    times = dict(zip(ways, in_turn(list(ways.values()), now, rounds, collect=True), strict=True))
    return {**figures, 'times': times, 'over_export': time_ratio(times[WHOLE], times[EXPORT])}


def full() -> list[Cell]:
    """Ten models, and a chain of blocks at several depths and widths."""
    cells = [cell(model) for model in CONFIG_OF]
    cells += [chain('depth', depth) for depth in DEPTHS]
    return cells + [chain('width', width) for width in WIDTHS]


def quick() -> list[Cell]:
    """The two smallest models, and two depths and widths."""
    cells = [cell(model) for model in SIZES]
    cells += [chain('depth', depth) for depth in DEPTHS[:2]]
    return cells + [chain('width', width) for width in WIDTHS[:2]]


def cell(model: str, **changes: Any) -> Cell:
    """The cell of a model."""
    settings = {'model': model, 'size': SIZES.get(model, SIZE), 'rounds': ROUNDS, **changes}
    return Cell(Path(model).stem, measure, settings)


def chain(kind: str, value: int, **changes: Any) -> Cell:
    """The cell of a ResNet of some ``depth``, or of some ``width`` of its first stage."""
    options: dict[str, int] = {'model.backbone.depth': value}
    if kind == 'width':
        keys = {'model.backbone.stem_channels': 1, 'model.backbone.base_channels': 1, 'model.head.in_channels': 4}
        options = {'model.backbone.depth': DEPTHS[0], **{key: factor * value for key, factor in keys.items()}}
    found = cell(CHAIN, options=options, **changes)
    return Cell(f'{kind}-{value}', measure, found.settings)


def middle(own: Mapping[str, Any], way: str) -> float:
    """Median seconds of a way; not a number if it failed."""
    return median(own['times'][way]) if way in own['times'] else math.nan


def is_chain(own: Mapping[str, Any]) -> bool:
    """Whether a cell is one whose depth or width is varied."""
    return bool(own.get('options'))


def varied(found: Found, kind: str) -> list[tuple[int, Mapping[str, Any]]]:
    """Layers or channels, and the cell, of each cell whose depth or width is varied."""
    own = [cell for cell in found if cell['cell'].startswith(f'{kind}-')]
    if kind == 'depth':
        return [(cell['layers'], cell) for cell in own]
    return [(cell['options']['model.backbone.base_channels'], cell) for cell in own]


def exponent(points: Sequence[tuple[int, Mapping[str, Any]]], way: str) -> float:
    """Power of the size with which the time of a way grows; not a number without two sizes."""
    if len(points) < 2:
        return math.nan
    sizes = [math.log(size) for size, _ in points]
    times = [math.log(middle(cell, way)) for _, cell in points]
    return linear_regression(sizes, times).slope


def tables(found: Found) -> dict[str, Table]:
    """Tables of the models, and of depth and width."""
    head = ['layers', EXPORT, READ, 'rehearsal', 'together', 'over torch.export', PEER, 'groups']
    models = [[own['model'], *row(own)] for own in found if not is_chain(own)]
    named = {'Models': (['model', *head], models)}
    for kind, unit in (('depth', 'layers'), ('width', 'channels of the first stage')):
        points = varied(found, kind)
        rows = [[own['cell'], *row(own)] for _, own in points]
        powers = [f'{exponent(points, way):.2f}' for way in (EXPORT, READ)]
        rows.append(['exponent', '', *powers, '', f'{exponent(points, WHOLE):.2f}', '', '', ''])
        named[f'Blocks of {CHAIN}, by {kind} (exponents: over {unit})'] = (['', *head], rows)
    return named


def row(own: Mapping[str, Any]) -> list[str]:
    """Times of a cell in words."""
    export, read, whole = (middle(own, way) for way in (EXPORT, READ, WHOLE))
    times = [f'{seconds:.2f} s' for seconds in (export, read, whole - read, whole)]
    peer, groups = f'{middle(own, PEER):.2f} s', f'{own["groups"]}'
    if 'peer_fails' in own:
        peer = 'fails'
    return [f'{own["layers"]}', *times, with_quartiles(own['over_export'], 2), peer, groups]


def picture(found: Found) -> Figure:
    """Times of ten models as bars; times over depth and width as lines."""
    models = [own for own in found if not is_chain(own)]
    figure = wide(3.2 + 0.25 * len(models))
    left, *others = figure.subplots(1, 3, width_ratios=[2, 1, 1])
    draw_models(left, models)
    for axes, (kind, unit) in zip(others, (('depth', 'layers'), ('width', 'channels')), strict=True):
        points = varied(found, kind)
        for way, (colour, marker) in LOOKS.items():
            times = [middle(own, way) for _, own in points]
            axes.plot([size for size, _ in points], times, color=colour, marker=marker, label=way)
        axes.margins(0.1)
        axes.set(xlabel=unit, ylabel='seconds', title=f'by {kind}')
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.legend(*others[0].get_legend_handles_labels(), loc='outside lower center', ncols=len(LOOKS))
    return figure


def draw_models(axes: Axes, models: Found) -> None:
    """All times of each model, relative to that of torch.export."""
    for place, own in enumerate(models):
        export = middle(own, EXPORT)
        for way, (colour, marker) in LOOKS.items():
            axes.plot(middle(own, way) / export, place, color=colour, marker=marker, linestyle='')
    axes.axvline(TARGET, color='black', linewidth=0.8, linestyle='--')
    axes.set_yticks(range(len(models)), [own['model'] for own in models])
    axes.invert_yaxis()
    axes.set(xlabel=f'time / {EXPORT} (dashed: target, {TARGET})', title='models', xlim=(0, None))
    axes.grid(alpha=0.3)


PAGE = Page('graph', {FULL: full, QUICK: quick}, tables, picture, NOTES)
