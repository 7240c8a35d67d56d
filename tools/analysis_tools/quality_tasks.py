"""The tasks of the quality benchmark: small trainings of stock models on data in stock formats, in one plain loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import mmprune_gates  # noqa: F401  (cures come before the imports below)

# isort: split
import sys

sys.path.append(str(Path(__file__).resolve().parents[1] / 'dataset_converters'))  # the folder of the two below

# isort: split
import demo_data
import digits_data
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import MODELS, OPTIMIZERS, init_default_scope
from mmengine.runner import Runner, set_random_seed
from torch import Tensor, nn

from mmprune_gates import trace_channels
from mmprune_gates.channels import ChannelGraph
from mmprune_gates.engine.forwards import example_images, inference_forward, training_forward

PASSES = {'forward': inference_forward, 'train_forward': training_forward}
CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'demo'
DIGITS = 1347  # images for training, sorted by class
SIZE = (48, 64)  # of the scenes: half the demo's
# A third of the digits and half the channels, so that methods differ.
HARDER = {
    'train_dataloader.dataset.indices': list(range(0, DIGITS, 3)),
    'model.backbone.base_channels': 8,
    'model.backbone.stem_channels': 8,
    'model.head.in_channels': 32,
}


@dataclass(frozen=True)
class Recipe:
    """How a training goes: a linear warm-up, then a cosine to zero.

    Attributes:
        steps: Iterations.
        rate: Learning rate after the warm-up.
        warm_up: Iterations of the warm-up.
    """

    steps: int
    rate: float
    warm_up: int = 50


@dataclass(frozen=True)
class Task:
    """A model, its data, its metric, and how it is trained.

    Attributes:
        name: Its name.
        config: File below ``configs/demo`` that describes model, data and optimiser.
        metric: Name of the metric, in percent.
        start: How the dense start is trained, from scratch.
        further: How every method continues from there.
        shape: (C, H, W) of an image.
        write: Writes the data set into a folder.
        options: Changes of the config.
    """

    name: str
    config: str
    metric: str
    start: Recipe
    further: Recipe
    shape: tuple[int, int, int]
    write: Callable[[Path], Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    def on(self, data: Path) -> TaskData:
        """The task with its data set below a folder, written unless it exists."""
        root = Path(self.write(data / self.name))
        config = Config.fromfile(CONFIGS / self.config)
        config.merge_from_dict(dict(self.options))
        for split in ('train', 'val'):
            dataset = config[f'{split}_dataloader'].dataset
            dataset.data_root = str(root)
        config.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)  # no pass ends on a short batch
        return TaskData(self, config)


class TaskData:
    """A task whose data set is written.

    Args:
        task: The task.
        config: Its config, complete.
    """

    def __init__(self, task: Task, config: Config) -> None:
        self.task, self.config = task, config
        init_default_scope(config.default_scope)

    def model(self, seed: int) -> nn.Module:
        """The stock model with random weights."""
        set_random_seed(seed)
        model = MODELS.build(self.config.model)
        model.init_weights()
        return model

    def optimizer(self, model: nn.Module, rate: float) -> torch.optim.Optimizer:
        """The config's optimiser, at a learning rate."""
        return OPTIMIZERS.build({**self.config.optim_wrapper.optimizer, 'lr': rate, 'params': model.parameters()})

    @cached_property
    def example(self) -> Tensor:
        """(2, C, H, W) images for tracing."""
        return example_images({'input_shape': self.task.shape})

    def graph(self, model: nn.Module) -> ChannelGraph:
        """The channel graph of one of the task's models, every head included."""
        return trace_channels(model, (self.example,), **PASSES)

    def macs(self, model: nn.Module) -> int:
        """Multiply-accumulates of a model of any widths, by the same counter for all methods."""
        return trace_channels(model, (self.example,), inference_forward, rehearsal=False).macs()

    def batches(self, seed: int) -> Iterator[Any]:
        """Training batches without end, in an order set by the seed."""
        return iter(Runner.build_dataloader(self.config.train_dataloader, seed=seed))

    def score(self, model: nn.Module) -> float:
        """The metric on the validation images, by the stock evaluator."""
        loader = Runner.build_dataloader(self.config.val_dataloader, seed=0)
        evaluator = Evaluator(self.config.val_evaluator)
        evaluator.dataset_meta = loader.dataset.metainfo
        model.eval()
        with torch.no_grad():
            for batch in loader:
                evaluator.process(data_samples=model.val_step(batch), data_batch=batch)
        model.train()
        return float(evaluator.evaluate(len(loader.dataset))[self.task.metric])


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    """The loss of a batch, as mmengine's loop has it."""
    data = model.data_preprocessor(batch, training=True)
    return model.parse_losses(model(**data, mode='loss'))[0]


SCENES = Task(
    'scenes', 'dense_deeplabv3plus_scenes.py', 'mIoU', Recipe(1200, 2e-2, 100), Recipe(1200, 1e-2), (3, *SIZE),
    partial(demo_data.generate_voc, size=SIZE), {'model.data_preprocessor.size': SIZE},
)  # fmt: skip
# Other pictures, three times the noise, and one object in four in a texture of another class.
UNSEEN = replace(
    SCENES, name='unseen', write=partial(demo_data.generate_voc, size=SIZE, seed=2026, noise=24.0, odd_texture=0.25),
)  # fmt: skip
SEGFORMER = replace(
    SCENES, name='segformer', config='dense_segformer_scenes.py',
    start=Recipe(1200, 3e-3, 100), further=Recipe(1200, 1.5e-3),
)  # fmt: skip
DIGITS_TASK = Task(
    'digits', 'dense_resnet20_digits.py', 'accuracy/top1', Recipe(300, 0.1), Recipe(600, 0.02), (3, 8, 8),
    digits_data.write_digits, HARDER,
)  # fmt: skip
QUICK = replace(DIGITS_TASK, name='digits_quick', start=Recipe(60, 0.1, 10), further=Recipe(60, 0.02, 10))
TASKS = {task.name: task for task in (SCENES, UNSEEN, SEGFORMER, DIGITS_TASK, QUICK)}
