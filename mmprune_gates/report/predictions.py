"""Predictions of the slim model, or of the gated one if there is none, for images of the test set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from torch import Tensor, nn

from mmprune_gates.engine.builders import inference_model
from mmprune_gates.engine.checkpoint import load_weights, read_checkpoint
from mmprune_gates.engine.datasets import check_datasets
from mmprune_gates.engine.forwards import is_segmentor
from mmprune_gates.report.network import first_line
from mmprune_gates.report.pictures import Drawn, confusion, side_by_side
from mmprune_gates.report.run import Absent, Run

SHOWN = 20  # most classes of a readable confusion matrix
VOID = (1.0, 1.0, 1.0)


def predictions_of(run: Run, images: int, samples: int) -> Drawn:
    """Predictions beside the truth (segmentation), or a confusion matrix (classification).

    Args:
        run: The run.
        images: Number of images to show for a segmentor.
        samples: Largest number of images to classify.

    Raises:
        Absent: Config, weights or data are missing, or the model is of another kind.
    """
    config = run.need_config()
    if config.get('test_dataloader') is None:
        raise Absent(f'{run.config_path} has no test_dataloader')
    try:
        check_datasets(config, ('test_dataloader',))
    except FileNotFoundError as error:
        missing = str(error).split('\n')[1].strip()
        raise Absent(f'the data set is not here: {missing}') from error
    name, model_config, weights = weights_of(run)
    try:
        model = load(model_config, weights)
        dataset = DATASETS.build(config.test_dataloader.dataset)
        if is_segmentor(model):
            return segmentation(model, dataset, name, images)
        return classification(model, dataset, name, samples)
    except Exception as error:  # data sets and pipelines can be anybody's code
        raise Absent(f'no predictions of the {name} model: {first_line(error)}') from error


def weights_of(run: Run) -> tuple[str, Config, Path]:
    """Kind, config and weights of the model to show: slim if there is one, or else the last gated checkpoint.

    Raises:
        Absent: There is neither.
    """
    config = run.slim_dir / 'slim.py'
    weights = run.slim_dir / 'slim.pth'
    if run.slim is not None and config.is_file() and weights.is_file():
        return 'slim', Config.fromfile(config), weights
    if run.checkpoint is None:
        raise Absent(f'neither a slim model in {run.slim_dir} nor a checkpoint in {run.folder}')
    return 'gated', run.need_config(), run.checkpoint


def load(config: Config, weights: Path) -> nn.Module:
    """The model of a config with the weights of a checkpoint, on the CPU, ready to test."""
    model = inference_model(config)
    load_weights(model, read_checkpoint(weights), weights)
    return model


@torch.no_grad()
def predicted(model: Any, dataset: Any, index: int) -> tuple[Tensor, Any]:
    """The image of a sample as the model receives it, and the sample with truth and prediction."""
    sample = dataset[index]
    image = sample['inputs']
    (result,) = model.test_step(pseudo_collate([sample]))
    return image, result


def spread(dataset: Any, count: int) -> list[int]:
    """Indices evenly spread over a data set."""
    size = len(dataset)
    places = np.linspace(0, size - 1, min(count, size))
    return places.astype(int).tolist()


def segmentation(model: Any, dataset: Any, name: str, count: int) -> Drawn:
    """Image, truth if there is one, and prediction, for a few images of the test set."""
    classes = dataset.metainfo['classes']
    palette = np.array(dataset.metainfo['palette']) / 255
    rows = []
    seen = set()
    for index in spread(dataset, count):
        image, result = predicted(model, dataset, index)
        masks = {f'{name} model': result.pred_sem_seg}
        if 'gt_sem_seg' in result:
            masks = {'ground truth': result.gt_sem_seg, **masks}
        pixels = image.flip(0).permute(1, 2, 0)  # loaded as BGR
        row = {'image': pixels.byte().numpy()}
        for title, mask in masks.items():
            numbers = mask.data.squeeze(0).cpu().numpy()
            row[title] = coloured(numbers, palette)
            seen.update(np.unique(numbers).tolist())
        rows.append(row)
    legend = {}
    for number in sorted(seen):
        if number < len(classes):
            legend[classes[number]] = palette[number]
    shown = f'{len(rows)} of {len(dataset)} images of the test set, evenly spread'
    note = f"{shown}. Colours: the data set's own, white: void"
    return Drawn(note, side_by_side(rows, legend))


def coloured(mask: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """(H, W, 3) colours of (H, W) class numbers; pixels of no class are white."""
    table = np.tile(VOID, (256, 1))
    table[: len(palette)] = palette
    return table[np.clip(mask, 0, 255)]


def classification(model: Any, dataset: Any, name: str, count: int) -> Drawn:
    """Confusion matrix over images of the test set; with many classes, of those with the most errors."""
    true = []
    found = []
    for index in spread(dataset, count):
        _, result = predicted(model, dataset, index)
        if result.gt_label.numel() != 1:
            raise ValueError('images have several labels each, and a confusion matrix needs one')
        true.append(int(result.gt_label))
        found.append(int(result.pred_label))
    classes = dataset.metainfo.get('classes')
    if not classes:
        highest = max(true + found)
        classes = range(highest + 1)
    size = len(classes)
    matrix = np.zeros((size, size), int)
    np.add.at(matrix, (true, found), 1)
    right = matrix.trace()
    total = len(true)
    note = f'{name} model, {right} of {total} images right ({right / total:.2%})'
    if total < len(dataset):
        note += f'; the test set has {len(dataset)}, these are evenly spread over it'
    shown: range | np.ndarray = range(size)
    if size > SHOWN:
        shown = worst(matrix, SHOWN)
        note += f'. Shown: the {SHOWN} of {size} classes with the most errors'
    names = [str(classes[number]) for number in shown]
    return Drawn(note, confusion(matrix[shown][:, shown], names))


def worst(matrix: np.ndarray, count: int) -> np.ndarray:
    """(count,) in order, the classes of a confusion matrix that take part in the most errors."""
    right = matrix.diagonal()
    missed = matrix.sum(1) - right
    mistaken = matrix.sum(0) - right
    most_first = np.argsort(-missed - mistaken, kind='stable')
    return np.sort(most_first[:count])
