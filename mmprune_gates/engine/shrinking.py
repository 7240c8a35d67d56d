"""Removes channels from the model of a run, its averaged copies and its distributed wrapper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.hooks import EMAHook
from mmengine.model import BaseAveragedModel, is_model_wrapper
from torch import nn

from mmprune_gates.engine.forwards import example_images, training_forward
from mmprune_gates.engine.model_config import model_config_of
from mmprune_gates.engine.running import resumes, unwrapped
from mmprune_gates.gates import gates_of, has_gates
from mmprune_gates.pruning import Pruner
from mmprune_gates.pruning.shrink import has_left, shrink, shrunk_in, still_to_leave


def shrink_run(runner, pruner: Pruner) -> dict[str, Any]:
    """Remove closed channels from the model of a run; all ranks have to do it at the same step.

    Args:
        runner: The run.
        pruner: The pruner that closed them.

    Returns:
        The report of :meth:`~mmprune_gates.pruning.Pruner.shrink`.

    Raises:
        RanksDiffer: Ranks would remove different channels.
        RuntimeError: The model's output would change.
        ValueError: The optimiser has state that cannot be narrowed.
    """
    pruner.check_ranks()
    kept, device = pruner.controller.staying(), next(pruner.model.parameters()).device
    if runner.cfg.get('model') is not None:  # else the model was not built from a config, and its inputs are not known
        example = example_images(model_config_of(runner.cfg)).to(device)
        pruner.forwards, pruner.inputs = (training_forward,), ((example,), {})
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
        settled = resumes(runner) and has_left(state)  # a new run moves the gates that are left
        pruner.reshape(shrunk_in(state), settled)
    for averaged in averaged_models(runner):
        reshape_model(averaged.module, state)
        follow_module(averaged)
    if len(gates_of(model).shrunk) > before:
        wrap_again(runner)


def reshape_model(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Remove from a model the channels that had left it when a state was saved; does nothing to a model without gates.

    Raises:
        ValueError: The state belongs to another model.
    """
    if not has_gates(model):
        return
    for kept in still_to_leave(model, shrunk_in(state)):
        shrink(model, kept)


def averaged_models(runner) -> list[BaseAveragedModel]:
    """The averaged models of a run's hooks."""
    hooks = [hook for hook in runner.hooks if isinstance(hook, EMAHook) and hasattr(hook, 'ema_model')]
    return [hook.ema_model for hook in hooks]


def follow_module(averaged: BaseAveragedModel) -> None:
    """Let an averaged model average the current tensors of its module; it holds those that it began with."""
    module = averaged.module
    averaged.avg_parameters = module.state_dict() if averaged.update_buffers else dict(module.named_parameters())


def wrap_again(runner) -> None:
    """Wrap the model again for distributed training: a wrapper holds the parameters that it was created with."""
    if is_model_wrapper(runner.model):
        is_compiled = 'train_step' in vars(runner.model)
        runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), runner.model.module)
        if is_compiled:
            runner._maybe_compile('train_step')  # noqa: SLF001
        gates_of(unwrapped(runner)).follow(unwrapped(runner))  # sync_bn converts norms once more
