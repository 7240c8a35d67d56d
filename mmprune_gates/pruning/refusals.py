"""Gates, models and optimisers that a pruner refuses."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mmprune_gates.channels import ChannelGraph
from mmprune_gates.checks import listed, shown
from mmprune_gates.gates import Gate, GateSet

WRAPPERS = ('OptimizedModule', 'DistributedDataParallel', 'DataParallel')


def check_kind(gates: GateSet, gate: type[Gate], method: str) -> None:
    """Refuse gates of a kind that a method does not move.

    Args:
        gates: The gates.
        gate: The kind that it moves.
        method: Its name.

    Raises:
        ValueError: There are others.
    """
    kinds = {type(other).__name__ for other in gates.by_group.values() if other.per_module != gate.per_module}
    if kinds:
        raise ValueError(
            f"{method} needs model.gates=dict(type='{gate.__name__}') or a gate of that kind, the model has "
            f'{", ".join(sorted(kinds))}'
        )


def check_trainable(gates: GateSet) -> None:
    """Refuse gates that receive no gradient, since something has frozen them together with the model.

    Raises:
        ValueError: There are such gates; names their groups.
    """
    frozen = [group.name for group in gates.graph.free if not gates[group.name].theta.requires_grad]
    if frozen:
        raise ValueError(
            f'the gates of {listed(frozen)} do not require a gradient, so nothing could tell which of them to close: '
            'freeze the parameters of the model without those of model.gates'
        )


def check_whole(gates: GateSet) -> None:
    """Refuse a model that channels have left: targets are shares of the whole one.

    Raises:
        ValueError: Channels have left it.
    """
    if gates.shrunk:
        raise ValueError(
            'a checkpoint was loaded before training, and channels have left this model: its target would be a share '
            'of what is left. Build the model (the runner) anew, and train before you validate or test'
        )


def check_reached(model: nn.Module, graph: ChannelGraph, exclude: Sequence[str]) -> None:
    """Refuse a model with trainable parameters that no traced pass has reached.

    Raises:
        ValueError: There are such parameters; names the modules.
    """

    def trains(path: str) -> bool:
        return any(parameter.requires_grad for parameter in model.get_submodule(path).parameters(recurse=False))

    def excluded(path: str) -> bool:
        return any(fnmatch(path, pattern) for pattern in exclude)

    missed = [path for path in graph.unreached if trains(path) and not excluded(path)]
    if missed:
        raise ValueError(
            f'the traced passes do not reach {listed(missed)}, which hold parameters that train, so nothing is known '
            'of what depends on them. If the model does not use them either, freeze them (requires_grad=False) or '
            f'exclude them by name: exclude={missed!r}'
        )


def refuse_other(optimizer: torch.optim.Optimizer) -> None:
    """Refuse anything but an optimiser.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f'optimizer must be a torch.optim.Optimizer, got {shown(optimizer)}')


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse a model in the wrapper of ``torch.compile`` or of distributed training.

    Raises:
        ValueError: It is in one.
    """
    for name in ('_orig_mod', 'module'):
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module) and type(model).__name__ in WRAPPERS:
            raise ValueError(
                f'the model is in a {type(model).__name__}: give the pruner the {type(inner).__name__} itself, and '
                'compile or wrap it after that'
            )


def refuse_hidden_groups(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimiser that leaves its parameters to another, such as ZeroRedundancyOptimizer.

    Raises:
        ValueError: It does.
    """
    refuse_other(optimizer)
    for inner in inner_optimizers(optimizer):
        if inner.param_groups is not optimizer.param_groups:
            raise ValueError(
                f'{type(optimizer).__name__} keeps parameters in an optimiser of its own, where gates cannot be taken '
                f'out and narrower weights cannot follow: use {type(inner).__name__} itself'
            )


def refuse_unknown_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Refuse an optimiser with state that is neither a single number nor of its parameter's shape.

    Raises:
        ValueError: It has such state, or leaves its state to another optimiser; names it.
    """
    kind, cure = type(optimizer).__name__, 'Use an optimiser such as SGD or Adam(W), or train without shrinking'
    for inner in inner_optimizers(optimizer):
        raise ValueError(f'{kind} keeps state in {type(inner).__name__}, which would not become narrower. {cure}')
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            for part in tree_leaves(value):
                if not isinstance(part, Tensor) or part.numel() == 1:
                    continue
                if part is not value or part.shape != parameter.shape:
                    raise ValueError(
                        f'{kind} keeps {key!r} of shape {tuple(part.shape)} for {names.get(parameter, "a parameter")} '
                        f'of shape {tuple(parameter.shape)}: nothing tells how that becomes narrower. {cure}'
                    )


def inner_optimizers(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """The optimisers that one wraps."""
    return [value for value in vars(optimizer).values() if isinstance(value, torch.optim.Optimizer)]
