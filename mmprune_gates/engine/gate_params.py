"""What the pruning hooks share: the model and its parameters as a runner and its optimiser hold them."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from itertools import compress

import torch
from mmengine.model import is_model_wrapper
from mmengine.optim import BaseOptimWrapper
from torch import nn

from mmprune_gates.gates import GateSet
from mmprune_gates.gates.attach import NAME

STATE = 'mmprune_gates'  # key of a hook's state in a checkpoint


def unwrapped(runner) -> torch.nn.Module:
    """The model without a distributed wrapper."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def own_param_group(optimizer: torch.optim.Optimizer, gates: GateSet, lr: float) -> None:
    """Move the gates' parameters to a last group of the optimiser, without weight decay.

    Parameter schedulers exist by now and go over the groups they know, so no group is taken away, even if it is
    left empty. Where groups name their parameters (layer-wise decay), all do.
    """
    names, own = zip(*gates.named_parameters(prefix=NAME), strict=True)
    identities = set(map(id, own))
    for group in optimizer.param_groups:
        stays = [id(parameter) not in identities for parameter in group['params']]
        group |= {key: list(compress(group[key], stays)) for key in ('params', 'param_names') if key in group}
    group = {'params': list(own), 'lr': lr, 'initial_lr': lr, 'weight_decay': 0.0}
    named = any('param_names' in group for group in optimizer.param_groups)
    optimizer.add_param_group({**group, 'param_names': list(names)} if named else group)


def matching_modules(model: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    """The modules whose path matches one of the shell patterns.

    Raises:
        ValueError: A pattern that matches none.
    """
    paths = {path: module for path, module in model.named_modules()}
    for pattern in patterns:
        if not any(fnmatch(path, pattern) for path in paths):
            raise ValueError(f'the pattern {pattern!r} matches no module of {type(model).__name__}')
    return [module for path, module in paths.items() if any(fnmatch(path, pattern) for pattern in patterns)]


def loss_scale(optim_wrapper: BaseOptimWrapper) -> float:
    """What a loss is multiplied by before its backward: gradient accumulation and mixed precision."""
    scaler = getattr(optim_wrapper, 'loss_scaler', None)
    return float(optim_wrapper.scale_loss(torch.ones(()))) * (scaler.get_scale() if scaler else 1.0)
