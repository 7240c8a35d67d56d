"""One training of the quality benchmark: the same loop for every method."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from quality_tasks import Recipe, TaskData, loss_of
from torch import Tensor, nn

FINAL_RATE = 1e-3  # of the learning rate


@dataclass
class Training:
    """A model on its way.

    Attributes:
        data: Its task.
        model, optimizer: The model, and its optimiser.
        recipe: How long, how fast.
        losses: Loss of every step.
        seconds: Processor time of all steps.
    """

    data: TaskData
    model: nn.Module
    optimizer: torch.optim.Optimizer
    recipe: Recipe
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def rate_at(self, step: int) -> float:
        """Learning rate of a step."""
        own = self.recipe
        if step < own.warm_up:
            return own.rate * (step + 1) / own.warm_up
        share = (step - own.warm_up) / max(1, own.steps - own.warm_up)
        return own.rate * (FINAL_RATE + (1 - FINAL_RATE) * (1 + math.cos(math.pi * share)) / 2)

    def score_aside(self) -> float:
        """The metric now; what it costs does not count."""
        begin = time.process_time()
        found = self.data.score(self.model)
        self.seconds -= time.process_time() - begin
        return found


class Method:
    """Base of the methods; this one prunes nothing.

    Args:
        share: MACs of what is kept / MACs of the whole model.
        options: What else a method takes.
    """

    def __init__(self, share: float, **options: Any) -> None:
        self.share, self.options = share, options

    def begin(self, training: Training) -> None:
        """Prepare a training that begins."""
        self.training = training

    def after_backward(self) -> None:
        """Change gradients."""

    def after_step(self, step: int) -> None:
        """Act after a step of the optimiser; ``step`` counts from 1."""

    def finish(self) -> dict[str, Any]:
        """End with a slim model; returns figures to keep."""
        return {}


def train(training: Training, method: Method, seed: int) -> dict[str, Any]:
    """Train to the end; returns the figures of the method."""
    training.model.train()
    method.begin(training)
    batches = training.data.batches(seed)
    for step in range(training.recipe.steps):
        batch = next(batches)
        begin = time.process_time()
        for group in training.optimizer.param_groups:
            group['lr'] = training.rate_at(step)
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
        train(Training(data, model, data.optimizer(model, recipe.rate), recipe), Method(1.0), seed)
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f'.{seed}.partial')
        torch.save(model.state_dict(), partial)
        partial.replace(path)
    return torch.load(path, weights_only=True)


def further_training(data: TaskData, seed: int, starts: Path) -> Training:
    """A training that goes on from the dense start."""
    model = data.model(seed)
    model.load_state_dict(dense_start(data, seed, starts))
    recipe = data.task.further
    return Training(data, model, data.optimizer(model, recipe.rate), recipe)
