"""What every pruning hook does: own the gates of a run, watch their gradients, prove that they act, keep the state."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any

import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import print_log
from mmengine.optim import BaseOptimWrapper
from torch import Tensor, nn

from mmprune_gates.budget import Pruner
from mmprune_gates.engine.gate_params import STATE, loss_scale, unwrapped
from mmprune_gates.gates import Evidence, GatesDoNotAct, GateSet, gates_of, listed

# Keys of a config with which mmengine replaces or wraps modules of the model, and what they do.
REPLACING = {
    'sync_bn': 'converts norms',
    'activation_checkpointing': 'wraps forwards',
    'compile': 'compiles the training step',
}
BYPASSING = 'efficient_conv_bn_eval'  # computes convolution and norm at once, past the gates on either


class PruningHook(Hook):
    """Base of the pruning hooks. A hook decides when; what happens is the pruner's affair.

    A subclass makes the pruner in :meth:`make_pruner`, moves it in ``after_train_iter``, and states in
    :attr:`per_module` and :attr:`needs` which gates it moves.

    Attributes:
        gates: The gates of the run.
        pruner: What closes them; None before training.
        evidence: Of the gates' effect since the last check.
        grads: Group name -> gradient of its gate in this iteration.
        scale: What the loss of this iteration is multiplied with.
    """

    per_module = False  # whether it moves gates that have values for each module
    needs = 'PolarizationGate'
    pruner: Pruner | None = None
    gates: GateSet
    evidence: Evidence

    def __init__(self, exclude: Sequence[str]) -> None:
        self.exclude = tuple(exclude)
        self.loaded: dict[str, Any] | None = None
        self.grads: dict[str, Tensor] = {}
        self.scale = 1.0

    def make_pruner(self, runner) -> Pruner:
        """The pruner of a run; also prepares the optimiser."""
        raise NotImplementedError

    def altered(self, name: str, grad: Tensor) -> Tensor:
        """The gradient of a group's gate as the optimiser shall see it."""
        return grad

    def before_run(self, runner) -> None:
        """Follow modules that were replaced since the model was built; before training, take the gates over."""
        model = unwrapped(runner)
        gates = gates_of(model)
        gates.follow(model)
        if not isinstance(runner.optim_wrapper, BaseOptimWrapper):
            return  # validation and test leave the optimiser a config
        self.check_run(runner, model, gates)
        gates.claim(type(self).__name__)
        self.gates, self.evidence = gates, Evidence(model, gates)
        self.pruner = self.make_pruner(runner)

    def check_run(self, runner, model: nn.Module, gates: GateSet) -> None:
        """Refuse what would make a run silently wrong.

        Raises:
            ValueError: Gates of another kind, a config key that bypasses gates, or layers that the trace has missed.
        """
        name = type(self).__name__
        check_kind(gates, self)
        if runner.cfg.get(BYPASSING) is not None:
            raise ValueError(
                f'{name}: {BYPASSING}={runner.cfg[BYPASSING]!r} computes convolutions and norms at once, past the '
                'gates on them; take the key out of the config (a slim model can be trained and tested with it)'
            )
        trains = {path for path in gates.graph.unreached if is_trained(model.get_submodule(path))}
        if missed := sorted(path for path in trains if not any(fnmatch(path, p) for p in self.exclude)):
            raise ValueError(
                f'{name}: the traced passes do not reach {listed(missed)}, which hold parameters that train, so '
                'nothing is known of what depends on them. If the model does not use them either, freeze them '
                f'(requires_grad=False) or exclude them by name: exclude={missed[:1]!r}; tools/channels.py lists all'
            )
        if any(isinstance(hook, EMAHook) for hook in runner.hooks):
            print_log(
                f'{name}: EMAHook averages the gates as well, and averages never reach exactly 0: slim a checkpoint of '
                'the weights that were trained, or begin to average after the gates have settled (begin_iter)',
                'current',
                logging.WARNING,
            )

    def before_train(self, runner) -> None:
        """Restore a resumed run's state; begin to watch the gradients."""
        if self.resumes(runner):
            self.pruner.load_state_dict(self.loaded)
            self.compare_target()
        for group in self.gates.graph.free:
            self.gates[group.name].theta.register_hook(self.watch(group.name))
        self.prove(runner)

    def resumes(self, runner) -> bool:
        """Whether a run goes on from a saved state."""
        return self.loaded is not None and runner.iter > 0

    def compare_target(self) -> None:
        """Say so if the target has changed after what it decides was decided."""
        before, now = self.loaded['target'], self.pruner.target
        if self.pruner.settled and before != now:
            print_log(
                f'{type(self).__name__}: target_macs is {now} now, but the gates have settled at {before} and stay as '
                'they are; start a new run (load_from) for another target',
                'current',
                logging.WARNING,
            )

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Remember what gradients are scaled with."""
        self.scale = loss_scale(runner.optim_wrapper)

    def watch(self, name: str):
        """A hook that keeps the gradient of a group's gate."""

        def keep(grad: Tensor) -> Tensor:
            own = grad.detach() / self.scale
            self.grads[name] = self.grads[name] + own if name in self.grads else own
            return self.altered(name, grad)

        return keep

    def taken_grads(self) -> dict[str, Tensor]:
        """The gradients of this iteration, which end with it; they are evidence."""
        grads, self.grads = self.grads, {}
        self.evidence.note(grads)
        return grads

    def prove(self, runner) -> None:
        """Stop a run whose gates do not act, or are not those that were chosen.

        Raises:
            GatesDoNotAct: They do not; names modules, and the keys of the config that may have done it.
            RuntimeError: They are not.
        """
        try:
            self.evidence.check()
        except GatesDoNotAct as error:
            keys = [f'{key}={runner.cfg[key]!r} {does}' for key, does in REPLACING.items() if runner.cfg.get(key)]
            hint = f'. In this config {"; ".join(keys)}' if keys else ''
            raise GatesDoNotAct(f'{type(self).__name__}: {error}{hint}') from error
        self.pruner.check()

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Save what a resumed run needs, if the gates act."""
        if self.pruner is not None:
            self.prove(runner)
            checkpoint[STATE] = self.pruner.state_dict()

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Keep the saved state until it is known whether the run resumes."""
        self.loaded = checkpoint.get(STATE)


def check_kind(gates: GateSet, hook: PruningHook | type[PruningHook]) -> None:
    """Refuse gates of a kind that a hook does not move.

    Raises:
        ValueError: They are.
    """
    kinds = {type(gate).__name__ for gate in gates.by_group.values() if gate.per_module != hook.per_module}
    if kinds:
        name = (hook if isinstance(hook, type) else type(hook)).__name__
        raise ValueError(
            f"{name} needs model.gates=dict(type='{hook.needs}') or a gate of that kind, the model has "
            f'{", ".join(sorted(kinds))}'
        )


def is_trained(module: nn.Module) -> bool:
    """Whether a module's own parameters are to be trained."""
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))


def forget_grads(gates: GateSet) -> None:
    """Let go of gradients that no optimiser zeroes."""
    for parameter in gates.parameters():
        parameter.grad = None


def flat_grads(gates: GateSet, grads: dict[str, Tensor]) -> Tensor:
    """(num_channels,) gradients from one vector per group; 0 where there is none."""
    like = next(iter(grads.values()))
    return torch.cat([grads.get(group.name, like.new_zeros(group.size)) for group in gates.graph.groups])
