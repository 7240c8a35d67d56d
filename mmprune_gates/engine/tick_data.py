"""The data of Gate Decorator's Ticks: a fixed part of the training data, alternating with all of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from math import ceil
from typing import Any

import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_world_size
from torch.utils.data import DataLoader, Subset


def subset_loader(runner, dataset, share: float) -> DataLoader:
    """A loader like the run's own for a random part of its data set, which is the same in every run.

    Args:
        runner: The runner; its config says how data is loaded.
        dataset: Its training data, a data set with a length.
        share: Share of the samples, in (0, 1]; at least one batch is taken.

    Raises:
        ValueError: The runner was given a loader that it did not build from a config.
    """
    if not isinstance(config := runner.cfg.get('train_dataloader'), dict):
        raise ValueError('GateDecoratorHook: subset needs a train_dataloader in the config')
    config = copy.deepcopy(dict(config))
    size = len(dataset)
    one_batch = config.get('batch_size') or 1
    count = min(size, max(round(share * size), one_batch))
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(size, generator=generator)[:count]
    config['dataset'] = Subset(dataset, sorted(chosen.tolist()))
    return runner.build_dataloader(config, seed=runner.seed)


def epoch_length(loader: DataLoader) -> int:
    """Iterations in which all ranks together see a data set once; endless samplers count the samples of all ranks."""
    ranks = get_world_size() if isinstance(loader.sampler, InfiniteSampler) else 1
    return ceil(len(loader) / ranks)


def endless(loader: DataLoader) -> Iterator[Any]:
    """Batches of a loader, epoch after epoch, shuffled again in each."""
    epoch = 0
    while True:
        if hasattr(loader.sampler, 'set_epoch'):
            loader.sampler.set_epoch(epoch)
        yield from loader
        epoch += 1


class Alternating:
    """Draws each batch from one of two endless iterators.

    A resumed loop first draws as many batches as it had before: each iterator gives as many as it had given.

    Args:
        full: Batches of all data.
        part: Batches of a part.
        in_part: Whether the next batch is one of the part.
        given: Batches given before the run was resumed.
        given_part: How many of them were of the part.
    """

    def __init__(
        self, full: Iterator[Any], part: Iterator[Any], in_part: Callable[[], bool], given: int, given_part: int
    ) -> None:
        self.full, self.part, self.in_part = full, part, in_part
        self.past = chain(repeat(part, given_part), repeat(full, given - given_part))

    def __next__(self) -> Any:
        past = next(self.past, None)
        return next(past or (self.part if self.in_part() else self.full))

    def skip_iter(self, num_iters: int) -> None:
        """Skip the batches drawn before the run was resumed; onedl's loops call this, others draw them."""
        for _ in range(num_iters):
            next(self)
