"""Channels leave the model of a run, and what mmengine keeps beside it: averaged copies, a distributed wrapper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.hooks import EMAHook
from mmengine.model import BaseAveragedModel, is_model_wrapper
from torch import nn

from mmprune_gates.engine.forwards import example_images, training_forward
from mmprune_gates.engine.running import unwrapped
from mmprune_gates.gates import gates_of, has_gates
from mmprune_gates.pruning import Pruner
from mmprune_gates.pruning.shrink import shrink, still_to_leave


def shrink_run(runner, pruner: Pruner) -> dict[str, Any]:
    """Let closed channels leave the model of a run; all ranks have to do it at the same step.

    Args:
        runner: The run.
        pruner: What has closed them.

    Returns:
        What :meth:`~mmprune_gates.pruning.Pruner.shrink` does.

    Raises:
        RanksDiffer: Ranks would remove different channels.
        RuntimeError: The model's output would change.
        ValueError: The optimiser has state that cannot become narrower.
    """
    pruner.check_ranks()
    kept, device = pruner.controller.staying(), next(pruner.model.parameters()).device
    if runner.cfg.get('model') is not None:  # else the model was not built from a config, and its inputs are not known
        example = example_images(runner.cfg.model).to(device)
        pruner.forward, pruner.options = training_forward, ((example,), {})
    report = pruner.shrink()
    for averaged in averaged_models(runner):
        shrink(averaged.module, gates_of(averaged.module).graph.keeping(kept.vector))
        follow_module(averaged)
    wrap_again(runner)
    return report


def reshape_run(runner, pruner: Pruner | None, state: Mapping[str, Any]) -> None:
    """Give the model of a run the shape that it had when a checkpoint was saved, before weights are loaded.

    Args:
        runner: The run.
        pruner: Its pruner; None outside training.
        state: The pruner's state in the checkpoint.
    """
    model = unwrapped(runner)
    if not shrunk_in(state) or not has_gates(model):
        return
    before = len(gates_of(model).shrunk)
    if pruner is None:
        reshape_model(model, state)
    else:
        pruner.reshape(shrunk_in(state))
    for averaged in averaged_models(runner):
        reshape_model(averaged.module, state)
        follow_module(averaged)
    if len(gates_of(model).shrunk) > before:
        wrap_again(runner)


def shrunk_in(state: Any) -> list[torch.Tensor]:
    """What a saved state says of channels that had left; nothing if it is no state of ours."""
    shrunk = state.get('shrunk') if isinstance(state, Mapping) else None
    return shrunk if isinstance(shrunk, list) else []


def reshape_model(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Remove from a model what had left it when a state was saved; nothing where nothing had, or there are no gates.

    Raises:
        ValueError: The state is of another model.
    """
    if not has_gates(model):
        return
    for kept in still_to_leave(model, shrunk_in(state)):
        shrink(model, kept)


def averaged_models(runner) -> list[BaseAveragedModel]:
    """The averaged models that hooks of a run keep."""
    hooks = [hook for hook in runner.hooks if isinstance(hook, EMAHook) and hasattr(hook, 'ema_model')]
    return [hook.ema_model for hook in hooks]


def follow_module(averaged: BaseAveragedModel) -> None:
    """Let an averaged model average what its module has now; it keeps the tensors that it began with."""
    module = averaged.module
    averaged.avg_parameters = module.state_dict() if averaged.update_buffers else dict(module.named_parameters())


def wrap_again(runner) -> None:
    """Wrap the model anew for distributed training: a wrapper holds the parameters that it was made with."""
    if is_model_wrapper(runner.model):
        runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), runner.model.module)
