"""The configs that a pruned model is compared with, derived from those of its dense start and its gated run.

You et al., *Gate Decorator*, NeurIPS 2019, compare with training on without gates, with the same network scaled down,
and with the pruned architecture trained from scratch. Functions here read configs and return new ones.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import mmprune_gates  # noqa: F401  (cures come before the imports below)

# isort: split
from mmengine.config import Config

from mmprune_gates.channels import ChannelGraph
from mmprune_gates.checks import COUNT, checked
from mmprune_gates.engine.builders import uniform
from mmprune_gates.engine.model_config import (
    GATED,
    RUN_KEYS,
    slim_config,
    stock_model,
    with_our_import,
    without_our_hooks,
    without_pretrained,
)

# Keys of train_cfg and of parameter schedulers that count iterations or epochs from the beginning of the run.
TIMES = ('max_iters', 'max_epochs', 'begin', 'end', 'T_max', 'milestones', 'periods', 'step_size', 'total_steps')
UNITS = {'max_iters': 'iterations', 'max_epochs': 'epochs'}
FOREVER = 10**9  # mmengine's default of ``end``


def plain(config: Config) -> dict[str, Any]:
    """A config's values without those that belong to one run."""
    return {key: value for key, value in config.to_dict().items() if key not in RUN_KEYS}


def check_pair(start: Config, prune: Config) -> None:
    """Refuse configs that are not a dense start and a gated run of the same architecture.

    Raises:
        ValueError: They are no such pair.
    """
    if prune.model.get('type') != GATED:
        raise ValueError(f'PRUNE_CONFIG {prune.filename}: model.type is {prune.model.get("type")!r}, not {GATED!r}')
    first, second = str(start.model.get('type')), str(prune.model.get('architecture'))
    if first.split('.')[-1] != second.split('.')[-1]:
        raise ValueError(
            f'START_CONFIG {start.filename} trains a {first!r}, but PRUNE_CONFIG goes on from a {second!r}: '
            'give the config of the dense model that it starts from'
        )
    units = run_length(start)[1], run_length(prune)[1]
    if units[0] != units[1]:
        raise ValueError(
            f'START_CONFIG counts {units[0]}, PRUNE_CONFIG {units[1]}: use the same loop (train_cfg) in both, so that '
            'one schedule can stand for the two of them'
        )


def run_length(config: Config) -> tuple[int, str]:
    """How long a config trains: a number, and 'iterations' or 'epochs'.

    Raises:
        ValueError: Its train_cfg does not say, or gives no positive whole number.
    """
    for key, unit in UNITS.items():
        if value := (config.get('train_cfg') or {}).get(key):
            return checked(f'{config.filename}: train_cfg.{key}', value, COUNT), unit
    raise ValueError(f'{config.filename}: set train_cfg.max_iters or train_cfg.max_epochs; neither is there')


def dense_config(prune: Config) -> Config:
    """The gated config without gates: the stock config that its user began with."""
    result = plain(prune)
    result['model'] = stock_model(result['model'])
    if kept := without_our_hooks(result.pop('custom_hooks', None)):
        result['custom_hooks'] = kept
    return Config(result)


def stretched(config: Config, factor: Fraction) -> Config:
    """The same recipe over ``factor`` times as many iterations or epochs.

    Every time in ``train_cfg`` and ``param_scheduler`` is multiplied and rounded, warm-up included. What is stated
    per step (``gamma`` of ``ExponentialLR``), intervals, and times in hooks stay as they are.
    """
    result = plain(config)
    own = {key: result[key] for key in ('train_cfg', 'param_scheduler', *UNITS) if key in result}
    return Config({**result, **stretch_times(own, factor)})


def stretch_times(value: Any, factor: Fraction) -> Any:
    """A copy of nested values with every number below a key of :data:`TIMES` multiplied."""
    if isinstance(value, Mapping):
        return {k: scaled(v, factor) if k in TIMES else stretch_times(v, factor) for k, v in value.items()}
    return type(value)(stretch_times(v, factor) for v in value) if isinstance(value, (list, tuple)) else value


def scaled(value: Any, factor: Fraction) -> Any:
    """A time, or several, multiplied and rounded; None and mmengine's infinity stay as they are."""
    if isinstance(value, (list, tuple)):
        return type(value)(scaled(item, factor) for item in value)
    return value if value is None or value >= FOREVER else round(value * factor)


def from_scratch(start: Config, model: Mapping[str, Any], factor: Fraction) -> Config:
    """The recipe of the dense start, stretched, for a model with random weights."""
    result = plain(stretched(start, factor))
    result['custom_imports'] = with_our_import(result.get('custom_imports'))
    return Config({**result, 'model': without_pretrained(model), 'load_from': None})


def shrunk_model(dense: Mapping[str, Any], share: float, input_shape: Sequence[int]) -> dict[str, Any]:
    """Model config of a dense model with the same share of every free group's channels."""
    return slim_config(dense, widths=share, input_shape=list(input_shape))


def seeded(config: Config, seed: int, load_from: str | None = None) -> Config:
    """A config for one run: its seed, where it starts from, and a checkpoint at its end."""
    result = plain(config)
    result['randomness'] = {**(result.get('randomness') or {}), 'seed': seed}
    if load_from is not None:
        result['load_from'] = load_from
    if saving := (result.get('default_hooks') or {}).get('checkpoint'):
        saving['save_last'] = True
    return Config(result)


def choose_width(graph: ChannelGraph, target: int) -> tuple[float, int]:
    """The largest share of channels with which a uniformly narrower network costs at most ``target`` MACs.

    MACs grow with the share in steps, one wherever a group's rounded width grows; bisection over the steps finds the
    last one below the target exactly.

    Returns:
        The share (in the middle of its step), and the MACs with it.

    Raises:
        ValueError: Even one channel per group costs more.
    """
    shares = width_steps({group.size for group in graph.free})

    def macs(share: float) -> int:
        return graph.macs(uniform(graph, share))

    place = bisect.bisect_right(shares, target, key=macs) - 1
    if place < 0:
        raise ValueError(
            f'no uniform width costs as little as the pruned model ({target:,} MACs): one channel per group still '
            f'costs {macs(shares[0]):,}; prune less (target_macs of the hook)'
        )
    return shares[place], macs(shares[place])


def width_steps(sizes: set[int]) -> list[float]:
    """Ascending shares, one for each distinct rounding of the widths of groups of these sizes."""
    edges = {Fraction(2 * count + 1, 2 * size) for size in sizes for count in range(size)}
    borders = [Fraction(0), *sorted(edges), Fraction(1)]
    return [float((low + high) / 2) for low, high in pairwise(borders)]
