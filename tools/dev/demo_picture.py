"""The picture of a demo run: gates over training, channels kept per group, predictions beside the truth."""

from __future__ import annotations

import json
from pathlib import Path

from mmprune_gates import cli  # cures come before the imports below

# isort: split
import numpy as np
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.apis import inference_model, init_model
from mmseg.registry import DATASETS
from PIL import Image

from mmprune_gates.engine.record_hook import read_history
from mmprune_gates.report.pictures import draw_gates, draw_widths, png_of
from mmprune_gates.report.predictions import coloured

IMAGES = 6


def draw_groups(axes, report: dict) -> None:
    """Channels kept, one bar per group, in front of the dense width."""
    groups = report['groups']
    sizes = [group['size'] for group in groups.values()]
    kept = [len(group['kept']) for group in groups.values()]
    draw_widths(axes, [short(name) for name in groups], sizes, kept)
    axes.set(xlabel='channels', title='Channels kept per group')
    axes.legend(loc='lower right')


def short(name: str) -> str:
    """A module path without its least informative words."""
    return name.replace('backbone.', '').replace('_modules', '').replace('_head', '').removesuffix('.conv')


def draw_predictions(grid, configs: dict[str, tuple[str, str]], data_root: Path, count: int) -> None:
    """Image, truth and each model's prediction, one row per image of the test set."""
    models = {name: init_model(config, checkpoint, device='cpu') for name, (config, checkpoint) in configs.items()}
    config = Config.fromfile(next(iter(configs.values()))[0])
    init_default_scope('mmseg')
    dataset = DATASETS.build({**config.test_dataloader.dataset, 'data_root': str(data_root)})
    palette = np.array(dataset.metainfo['palette']) / 255
    chosen = np.linspace(0, len(dataset) - 1, count).astype(int)
    for row, index in enumerate(chosen):
        info = dataset.get_data_info(int(index))
        image = np.asarray(Image.open(info['img_path']).convert('RGB'))
        raw = np.asarray(Image.open(info['seg_map_path']))
        table = np.full(256, 255)
        for old, new in (info['label_map'] or {i: i for i in range(255)}).items():
            table[old] = new
        pictures = {'image': image, 'truth': coloured(table[raw], palette)}
        for name, model in models.items():
            found = inference_model(model, image[..., ::-1].copy()).pred_sem_seg.data[0].numpy()
            pictures[name] = coloured(found, palette)
        for column, (name, picture) in enumerate(pictures.items()):
            axes = grid.add_subplot(count, len(pictures), row * len(pictures) + column + 1)
            axes.imshow(picture)
            axes.set_axis_off()
            if row == 0:
                axes.set_title(name)


def draw_summary(
    path: Path, run: Path, slim: Path, models: dict[str, tuple[str, str]], data_root: Path, title: str
) -> None:
    """Write the picture of a run.

    Args:
        path: PNG to write.
        run: Work directory of the gated run, with ``gates.jsonl``.
        slim: Folder of the slim model, with ``slim.json``.
        models: Name -> (config, checkpoint) of the models to show.
        data_root: Folder of the data set.
        title: Title of the figure.
    """
    figure = Figure(figsize=(17, 9), layout='constrained')
    left, middle, right = figure.subfigures(1, 3, width_ratios=[5, 4, 8])
    figure.suptitle(title)
    draw_gates(left.subplots(), read_history(run / 'gates.jsonl'))
    draw_groups(middle.subplots(), json.loads((slim / 'slim.json').read_text()))
    draw_predictions(right, models, data_root, IMAGES)
    cli.write_bytes(path, png_of(figure, 90))
