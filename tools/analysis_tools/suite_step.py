"""The page on training steps: time, saved activations and peak memory of gated models over the same without gates.

Three sites: where gates cost least (as the package places them), all on the input, and all on the weight of the
consumers. Small batches show the fixed cost of gates; the models that train fastest are measured with larger ones too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from mmprune_gates import cli  # noqa: F401  (cures come before the imports below)

# isort: split
import benchmark
from matplotlib.figure import Figure
from suite_cells import FULL, GPU, QUICK, Cell, Found, Page, Table, error_bars, with_quartiles
from suite_models import MOBILENET, R50, SEGFORMER, path_of

from mmprune_gates.gates.placement import INPUT, WEIGHT
from mmprune_gates.report.pictures import BLUE, GREEN, VERMILION, wide

PLACED = 'placed'
SITES = {PLACED: 'as placed', INPUT: 'all on inputs', WEIGHT: 'all on weights'}
COLOURS = {PLACED: BLUE, INPUT: VERMILION, WEIGHT: GREEN}
MARKERS = {PLACED: 'o', INPUT: 's', WEIGHT: 'D'}
PANELS = {'time': 1.03, 'saved activations': 1.01, 'peak memory': None}  # with their targets
CROPS = {R50: (128, 256), MOBILENET: (128, 224), SEGFORMER: (128, 256)}
FIGURES = ('gates_on', 'seconds', 'time_ratio', 'saved_activation_bytes', 'step_peak_bytes')
PAIRS = {128: 12, 224: 12, 256: 6}
SMALL, LARGE = 2, 16  # images at a time
NOTES = (
    'Every number is gated / ungated, 1 is no cost. Time: median (quartiles) of the ratios of alternating pairs of '
    'steps with all work of the pruning hook, in the phase in which it moves gates. Saved activations: what the '
    'forward keeps for the backward. Peak: the most that tensors made in a step hold at a time. "Gates on": modules '
    'that gates act on; what cannot have its gate at the site asked for has it at the other one.'
)


def measure(model: str, crop: Sequence[int], site: str, batch: int, pairs: int, device: str, dtype: str) -> dict:
    """The figures of ``benchmark.py``.

    Args:
        model: Name of a gated model, or its config.
        crop: Height and width.
        site: One of :data:`SITES`.
        batch: Images at a time.
        pairs: Pairs of steps.
        device: ``cpu`` or ``cuda``.
        dtype: ``fp32`` or ``bf16``.
    """
    words = [path_of(model), '--crop', *crop, '--batch', batch, '--pairs', pairs, '--device', device]
    words += ['--amp-dtype', dtype, *([] if site == PLACED else ['--site', site])]
    report = benchmark.report_of(benchmark.parse([str(word) for word in words]))
    return {key: report[key] for key in FIGURES}


def cell(model: str, size: int, site: str, **changes: Any) -> Cell:
    """The cell of a model, a crop and a site."""
    settings = {'batch': SMALL, 'pairs': PAIRS.get(size, 20), 'device': 'cpu', 'dtype': 'fp32', **changes}
    name = f'{Path(model).stem}-{size}-{site}-{settings["dtype"]}-{settings["batch"]}'
    return Cell(name, measure, {'model': model, 'crop': [size, size], 'site': site, **settings})


def full() -> list[Cell]:
    """Three models, two crops, three sites; and larger batches, with gates as placed."""
    large = [(model, size) for model in (MOBILENET, SEGFORMER) for size in CROPS[model]]
    return [
        *(cell(model, size, site) for model in CROPS for size in CROPS[model] for site in SITES),
        *(cell(model, size, PLACED, batch=LARGE, pairs=6) for model, size in large),
    ]


def quick() -> list[Cell]:
    """Each model and site once, with small images."""
    return [cell(model, 64, site, pairs=3) for model, site in product(CROPS, SITES)]


def on_gpu() -> list[Cell]:
    """DeepLabV3+-R50 at its crop size, with and without mixed precision."""
    return [cell(R50, 512, site, batch=LARGE, device='cuda', dtype=dtype)
            for dtype, site in product(('fp32', 'bf16'), SITES)]  # fmt: skip


def tables(found: Found) -> dict[str, Table]:
    """The one table."""
    costs = ['time', 'saved activations', 'peak memory']
    head = ['model', 'crop', 'batch', 'dtype', 'gates', *costs, 'ungated step', 'gates on']
    return {'Gated over ungated': (head, [row(own) for own in found])}


def row(own: Mapping[str, Any]) -> list[str]:
    """The row of a cell."""
    gates_on = ', '.join(f'{number} {kind}' for kind, number in own['gates_on'].items())
    return [
        own['model'],
        f'{own["crop"][0]} x {own["crop"][1]}',
        str(own['batch']),
        own['dtype'],
        SITES[own['site']],
        with_quartiles(own['time_ratio']),
        f'{own["saved_activation_bytes"]["ratio"]:.4f}',
        f'{own["step_peak_bytes"]["ratio"]:.4f}',
        f'{median(own["seconds"]["ungated"]):.3f} s',
        gates_on,
    ]


def picture(found: Found) -> Figure:
    """Cost of each cell over the ungated model: time, saved activations and peak memory, a panel each."""
    names = list(dict.fromkeys(name_of(own) for own in found))
    figure = wide(1.3 + 0.5 * len(names))
    panels = figure.subplots(1, 3, sharey=True)
    for shift, (site, title) in enumerate(SITES.items()):
        cells = [own for own in found if own['site'] == site]
        heights = [names.index(name_of(own)) + 0.22 * (shift - 1) for own in cells]
        medians, spread = error_bars([own['time_ratio'] for own in cells])
        look: dict[str, Any] = {'color': COLOURS[site], 'marker': MARKERS[site], 'linestyle': ''}
        panels[0].errorbar(medians, heights, xerr=spread, label=title, **look)
        for axes, key in zip(panels[1:], ('saved_activation_bytes', 'step_peak_bytes'), strict=True):
            axes.plot([own[key]['ratio'] for own in cells], heights, **look)
    for axes, (title, target) in zip(panels, PANELS.items(), strict=True):
        axes.axvline(1, color='black', linewidth=0.8)
        if target:
            axes.axvline(target, color='black', linewidth=0.8, linestyle='--')
        axes.set(xlabel=f'gated / ungated{f" (dashed: {target})" if target else ""}', title=title)
        axes.grid(alpha=0.3)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    figure.legend(loc='outside lower center', ncols=len(SITES))
    return figure


def name_of(own: Mapping[str, Any]) -> str:
    """Name of a cell without its site."""
    return f'{own["model"]}, {own["batch"]} x {own["crop"][0]}, {own["dtype"]}'


PAGE = Page('step', {FULL: full, QUICK: quick, GPU: on_gpu}, tables, picture, NOTES)
