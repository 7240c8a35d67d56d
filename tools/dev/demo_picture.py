"""The picture of a demo run: gates over training, channels kept per group, predictions beside the truth."""

from __future__ import annotations

import json
from pathlib import Path

import mmprune_gates  # noqa: F401  (cures come before the imports below)

# isort: split
import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.apis import inference_model, init_model
from mmseg.registry import DATASETS
from PIL import Image


def draw_gates(axes, history: list[dict]) -> None:
    """Share of gates in each bin of value, over the iterations; exact zeros are a row of their own."""
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


def draw_groups(axes, report: dict) -> None:
    """Channels kept and removed, one bar per group."""
    names = list(report['groups'])
    sizes = [report['groups'][name]['size'] for name in names]
    kept = [len(report['groups'][name]['kept']) for name in names]
    places = np.arange(len(names))
    axes.barh(places, sizes, color='#d8d8d8', label='removed')
    axes.barh(places, kept, color='#2a788e', label='kept')
    axes.set_yticks(places, [short(name) for name in names], fontsize=6)
    axes.invert_yaxis()
    axes.set(xlabel='channels', title='Channels kept per group')
    axes.legend(loc='lower right')


def short(name: str) -> str:
    """A module path with the words that say little left out."""
    return name.replace('backbone.', '').replace('_modules', '').replace('_head', '').removesuffix('.conv')


def colour(mask: np.ndarray, palette: list) -> np.ndarray:
    """(H, W) class numbers to (H, W, 3) colours; void is white."""
    table = np.full((256, 3), 255, np.uint8)
    table[: len(palette)] = palette
    return table[mask]


def draw_predictions(grid, configs: dict[str, tuple[str, str]], data_root: Path, count: int) -> None:
    """Image, truth and each model's prediction, one row per image of the test set."""
    models = {name: init_model(config, checkpoint, device='cpu') for name, (config, checkpoint) in configs.items()}
    config = Config.fromfile(next(iter(configs.values()))[0])
    init_default_scope('mmseg')
    dataset = DATASETS.build({**config.test_dataloader.dataset, 'data_root': str(data_root)})
    palette = dataset.metainfo['palette']
    chosen = np.linspace(0, len(dataset) - 1, count).astype(int)
    for row, index in enumerate(chosen):
        info = dataset.get_data_info(int(index))
        image = np.asarray(Image.open(info['img_path']).convert('RGB'))
        raw = np.asarray(Image.open(info['seg_map_path']))
        table = np.full(256, 255)
        for old, new in (info['label_map'] or {i: i for i in range(255)}).items():
            table[old] = new
        pictures = {'image': image, 'truth': colour(table[raw], palette)}
        for name, model in models.items():
            found = inference_model(model, image[..., ::-1].copy()).pred_sem_seg.data[0].numpy()
            pictures[name] = colour(found, palette)
        for column, (name, picture) in enumerate(pictures.items()):
            axes = grid.add_subplot(count, len(pictures), row * len(pictures) + column + 1)
            axes.imshow(picture)
            axes.set_axis_off()
            if row == 0:
                axes.set_title(name)


def draw_summary(
    path: Path, run: Path, slim: Path, models: dict[str, tuple[str, str]], data_root: Path, title: str, count: int = 6
) -> None:
    """Write the picture of a run.

    Args:
        path: PNG to write.
        run: Work directory of the gated run, with ``gates.jsonl``.
        slim: Folder of the slim model, with ``slim.json``.
        models: Name -> (config, checkpoint) of the models to show.
        data_root: Folder of the data set.
        title: Title of the figure.
        count: Images to show.
    """
    figure = plt.figure(figsize=(17, 9), layout='constrained')
    left, middle, right = figure.subfigures(1, 3, width_ratios=[5, 4, 8])
    figure.suptitle(title)
    draw_gates(left.subplots(), [json.loads(line) for line in (run / 'gates.jsonl').read_text().splitlines()])
    draw_groups(middle.subplots(), json.loads((slim / 'slim.json').read_text()))
    draw_predictions(right, models, data_root, count)
    partial = path.with_suffix('.partial.png')
    figure.savefig(partial, dpi=90)
    plt.close(figure)
    partial.replace(path)
