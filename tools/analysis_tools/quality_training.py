"""One training of the quality benchmark: the same loop for every method."""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.runner import set_random_seed
from quality_tasks import Recipe, TaskData, loss_of
from torch import Tensor, nn

FINAL_RATE = 1e-3  # of the learning rate
MOST_PLACES = 2**24  # that single precision tells apart


@dataclass
class Training:
    """A model in training.

    Attributes:
        data: Its task.
        model, optimizer: The model, and its optimiser.
        recipe: Length and learning rate.
        seed: Seed of weights and data order.
        rate_scale: Factor of the recipe's learning rate.
        losses: Loss of every step.
        seconds: Processor time of all steps.
    """

    data: TaskData
    model: nn.Module
    optimizer: torch.optim.Optimizer
    recipe: Recipe
    seed: int
    rate_scale: float = 1.0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def rate_at(self, step: int) -> float:
        """Learning rate of a step."""
        own, rate = self.recipe, self.rate
        if step < own.warm_up:
            return rate * (step + 1) / own.warm_up
        share = (step - own.warm_up) / max(1, own.steps - own.warm_up)
        return rate * (FINAL_RATE + (1 - FINAL_RATE) * (1 + math.cos(math.pi * share)) / 2)

    @property
    def rate(self) -> float:
        """Learning rate after the warm-up."""
        return self.recipe.rate * self.rate_scale

    def score_aside(self) -> float:
        """The current metric; the time it takes is not counted."""
        begin = time.process_time()
        with own_draws():
            found = self.data.score(self.model)
        self.seconds -= time.process_time() - begin
        return found

    def renew_optimizer(self, places: nn.Module | None = None) -> None:
        """Continue with a new optimiser of the same kind for the model's current parameters.

        Args:
            places: A result of :func:`places_in` from before the model was cut, cut in the same way: it carries over
                the state of the entries that are left. Without it, the optimiser starts without state.
        """
        before = self.optimizer
        self.optimizer = self.data.optimizer(self.model, self.rate)
        if places is None:
            return
        olds = [parameter for group in before.param_groups for parameter in group['params']]
        lasting = zip(olds, self.model.parameters(), places.parameters(), strict=True)
        for old, new, place in lasting:
            index = place.detach().flatten().long()
            self.optimizer.state[new] = {
                key: value.flatten()[index].view_as(new) if is_like(value, old) else value
                for key, value in before.state.get(old, {}).items()
            }


@contextmanager
def own_draws() -> Iterator[None]:
    """Leave the random numbers that follow as they would have been: same augmentations and dropout for all methods."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def places_in(model: nn.Module) -> nn.Module:
    """A copy of a model in which each parameter holds the positions of its own entries: 0, 1, 2 and so on.

    Raises:
        ValueError: A parameter is too large for positions in single precision.
    """
    places = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in places.named_parameters():
            if parameter.numel() > MOST_PLACES:
                raise ValueError(f'{name} has {parameter.numel()} entries; places are exact up to {MOST_PLACES}')
            parameter.copy_(torch.arange(parameter.numel()).view_as(parameter))
    return places


def is_like(value: Any, parameter: Tensor) -> bool:
    """Whether a value of an optimiser's state has an entry for each entry of a parameter."""
    return isinstance(value, Tensor) and value.shape == parameter.shape


class Method:
    """Base of the methods; this one prunes nothing.

    Args:
        share: MACs to keep / MACs of the whole model.
        options: Further options of a method.
    """

    def __init__(self, share: float, **options: Any) -> None:
        self.share, self.options = share, options

    def begin(self, training: Training) -> None:
        """Prepare a training."""
        self.training = training

    def before_step(self, step: int) -> None:
        """Set the learning rate; ``step`` counts from 0."""
        for group in self.training.optimizer.param_groups:
            group['lr'] = self.training.rate_at(step)

    def after_backward(self) -> None:
        """Change gradients."""

    def after_step(self, step: int) -> None:
        """Act after a step of the optimiser; ``step`` counts from 1."""

    def finish(self) -> dict[str, Any]:
        """End with a slim model; returns figures to keep."""
        return {}


def train(training: Training, method: Method) -> dict[str, Any]:
    """Train to the end; returns the figures of the method."""
    method.begin(training)
    set_random_seed(training.seed)  # whatever a method has drawn, all see the same augmentations
    training.model.train()
    batches = training.data.batches(training.seed)
    for step in range(training.recipe.steps):
        batch = next(batches)
        begin = time.process_time()
        method.before_step(step)
        loss = loss_of(training.model, batch)
        loss.backward()
        method.after_backward()
        training.optimizer.step()
        training.optimizer.zero_grad()
        method.after_step(step + 1)
        training.seconds += time.process_time() - begin
        training.losses.append(float(loss.detach()))
    return method.finish()


def dense_start(data: TaskData, seed: int, folder: Path) -> dict[str, Tensor]:
    """Weights of the dense start of a seed: trained once, then read."""
    path = folder / f'{data.task.name}-{seed}.pth'
    if not path.is_file():
        model, recipe = data.model(seed), data.task.start
        train(Training(data, model, data.optimizer(model, recipe.rate), recipe, seed), Method(1.0))
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f'.{seed}.partial')
        torch.save(model.state_dict(), partial)
        partial.replace(path)
    return torch.load(path, weights_only=True)


def further_training(data: TaskData, seed: int, starts: Path, rate_scale: float = 1.0) -> Training:
    """A training that continues from the dense start.

    Args:
        data: The task.
        seed: Seed of the start and of the data order.
        starts: Folder of the dense starts.
        rate_scale: Factor of the learning rate.
    """
    model = data.model(seed)
    model.load_state_dict(dense_start(data, seed, starts))
    recipe = data.task.further
    optimizer = data.optimizer(model, recipe.rate * rate_scale)
    return Training(data, model, optimizer, recipe, seed, rate_scale)
