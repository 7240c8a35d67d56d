"""The gates' parameters in an optimiser, and the lookup of modules by path patterns."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from itertools import compress
from typing import Any

import torch
from torch import nn

from mmprune_gates.gates import GateSet
from mmprune_gates.gates.attach import NAME


def take_out(optimizer: torch.optim.Optimizer, gates: GateSet) -> None:
    """Remove the gates' parameters from an optimiser.

    Learning rate schedulers iterate over the groups they know, so no group is removed, even if it becomes empty.
    """
    own = {id(parameter) for parameter in gates.parameters()}
    for group in optimizer.param_groups:
        keep_only(group, [id(parameter) not in own for parameter in group['params']])


def keep_only(group: dict[str, Any], stays: Sequence[bool]) -> None:
    """Keep those parameters of an optimiser's group that stay, and their names if it has names."""
    for key in ('params', 'param_names'):
        if key in group:
            group[key] = list(compress(group[key], stays))


def own_param_group(optimizer: torch.optim.Optimizer, gates: GateSet, lr: float) -> None:
    """Move the gates' parameters to a group of their own, without weight decay.

    If other groups name their parameters (layer-wise decay), this one does too.
    """
    take_out(optimizer, gates)
    own = dict(gates.named_parameters(prefix=NAME))
    group = {'params': list(own.values()), 'lr': lr, 'initial_lr': lr, 'weight_decay': 0.0}
    if any('param_names' in other for other in optimizer.param_groups):
        group['param_names'] = list(own)
    optimizer.add_param_group(group)


def matching_modules(model: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    """The modules whose path matches one of the shell patterns.

    Raises:
        ValueError: A pattern matches no module.
    """
    modules = dict(model.named_modules())
    found = {}
    for pattern in patterns:
        paths = [path for path in modules if fnmatch(path, pattern)]
        if not paths:
            raise ValueError(f'the pattern {pattern!r} matches no module of {type(model).__name__}')
        for path in paths:
            found[path] = modules[path]
    return list(found.values())
