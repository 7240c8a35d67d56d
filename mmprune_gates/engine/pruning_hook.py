"""The base of the pruning hooks: it gives the run's gates to a pruner, keeps its state, and informs the user."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import BaseOptimWrapper, OptimWrapperDict
from mmengine.runner import find_latest_checkpoint
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_only

from mmprune_gates.checks import SWITCH, Rule, checked, is_number
from mmprune_gates.engine.checkpoint import STATE, read_checkpoint
from mmprune_gates.engine.export import export_slim
from mmprune_gates.engine.registry import COSTS, CRITERIA, built
from mmprune_gates.engine.running import accumulates, has_static_graph, loss_scale, resumes, unwrapped
from mmprune_gates.engine.shrinking import reshape_run, shrink_run
from mmprune_gates.gates import GatesDoNotAct, gates_of, has_gates
from mmprune_gates.pruning import Pruner
from mmprune_gates.pruning.refusals import refuse_unknown_state
from mmprune_gates.pruning.threads import one_thread

# Keys of a config with which mmengine replaces or wraps modules of the model, and what they do.
REPLACING = {
    'sync_bn': 'converts norms',
    'activation_checkpointing': 'wraps forwards',
    'compile': 'compiles the training step',
}
SHRINK = Rule(
    'True, False, or a share of the MACs in (0, 1)',
    lambda value: isinstance(value, bool) or (is_number(value) and 0 < value < 1),
)
LOOK_EVERY = 10  # iterations between two checks of what could leave the model
TIMED = 50  # iterations whose mean time is logged
BYPASSING = 'efficient_conv_bn_eval'  # computes convolution and norm at once, past the gates on either


class PruningHook(Hook):
    """Base of the pruning hooks: an adapter between a runner and a pruner.

    Args:
        criterion, cost: Configs, types in ``mmprune_gates.CRITERIA`` and ``mmprune_gates.COSTS``.
        shrink: Whether closed channels leave the model once no further ones will close; a number: also earlier,
            whenever that share of the MACs can go.
        export: Whether the slim product is written when training ends.

    Attributes:
        settings: Settings of the pruner.
        pruner: The pruner; None before training.
        loaded: State from a checkpoint, until it is known whether the run resumes.
        left_at: Iteration in which channels last left the model; None once the log has said what that gained.
        saved_at: Iterations done when the run last saved a checkpoint, or those of the checkpoint that it resumed from.
    """

    pruner: Pruner = None  # type: ignore[assignment]  # what a run calls while it trains may rely on it
    loaded: dict[str, Any] | None = None
    left_at: int | None = None
    saved_at: int | None = None
    too_short = 'Train longer'  # what to do about a run that ends too early
    figures: dict[str, float] | None = None  # as of the last iteration

    def __init__(self, criterion: Any, cost: Any, shrink: bool | float, export: bool) -> None:
        name = type(self).__name__
        self.shrink = checked(f'{name}: shrink', shrink, SHRINK)
        self.export = checked(f'{name}: export', export, SWITCH)
        self.settings: dict[str, Any] = {'criterion': built(CRITERIA, criterion), 'cost': built(COSTS, cost)}

    @contextmanager
    def own_errors(self) -> Iterator[None]:
        """Prefix errors about bad values with the name of the hook."""
        try:
            yield
        except ValueError as error:
            raise ValueError(f'{type(self).__name__}: {error}') from error

    def make_pruner(self, runner) -> Pruner:
        """The pruner of a run."""
        raise NotImplementedError

    def before_run(self, runner) -> None:
        """Let gates follow modules replaced since the model was built; before training, create the pruner.

        Raises:
            ValueError: The method refuses the model, or a config key bypasses gates.
        """
        model, trains = unwrapped(runner), isinstance(runner.optim_wrapper, BaseOptimWrapper)
        if trains or has_gates(model):
            gates_of(model).follow(model)
        if not trains or (self.pruner is not None and self.pruner.model is model):
            return  # validation and test leave the optimiser a config, and may follow training
        if isinstance(runner.optim_wrapper, OptimWrapperDict):
            raise ValueError(f'{type(self).__name__}: optim_wrapper must have one optimizer, not several, and not none')
        with self.own_errors():
            self.refuse_bypass(runner)
            self.refuse_sharding(runner)
            self.refuse_static_accumulation(runner)
            self.pruner = self.make_pruner(runner)
        if self.shrink is False and any(isinstance(hook, EMAHook) for hook in runner.hooks):
            self.warn(
                'EMAHook averages the gates as well, and averages never reach exactly 0: slim a checkpoint of the '
                'weights that were trained, or set shrink=True, with which closed channels leave the averages too'
            )

    def refuse_bypass(self, runner) -> None:
        """Refuse a config key that lets the model compute past its gates.

        Raises:
            ValueError: The key is set.
        """
        if runner.cfg.get(BYPASSING) is not None:
            raise ValueError(
                f'{BYPASSING}={runner.cfg[BYPASSING]!r} computes convolutions and norms at once, past the gates on '
                'them; take the key out of the config (a slim model can be trained and tested with it)'
            )

    def refuse_sharding(self, runner) -> None:
        """Refuse a model wrapper other than DistributedDataParallel, such as one that shards parameters.

        Raises:
            ValueError: The model has one.
        """
        if is_model_wrapper(runner.model) and not isinstance(runner.model, DistributedDataParallel):
            raise ValueError(
                f'the model is wrapped in {type(runner.model).__name__}, and gates act through DistributedDataParallel '
                'only: sharded parameters (FSDP, DeepSpeed) hold no whole channels. Take model_wrapper_cfg, or the '
                'strategy, out of the config'
            )

    def refuse_static_accumulation(self, runner) -> None:
        """Refuse a static graph with accumulated gradients: torch cannot learn it if the first iteration reduces none.

        Raises:
            ValueError: The run has both.
        """
        if has_static_graph(runner) and accumulates(runner.optim_wrapper):
            raise ValueError(
                'torch has no static graph (model_wrapper_cfg.static_graph) with accumulated gradients '
                '(optim_wrapper.accumulative_counts): take one of the two out of the config'
            )

    def before_train(self, runner) -> None:
        """Restore the state of a resumed run, or begin; check that the gates are in their places."""
        if self.loaded is None or runner.iter == 0:
            self.begin(runner)
        else:
            self.restore(runner, self.loaded)
            self.saved_at = runner.iter
        self.check(runner)

    def restore(self, runner, state: dict[str, Any]) -> None:
        """Continue from a saved state; warn if it has settled at another target.

        Raises:
            ValueError: The state belongs to another method, or to other gates.
        """
        try:
            self.pruner.load_state_dict(state)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ValueError(
                f'{type(self).__name__}: the pruning state in the checkpoint ({STATE!r}) is not one of this hook and '
                f'model ({type(error).__name__}: {error}); start from its weights with load_from instead of resuming'
            ) from error
        before, now = state['target'], self.pruner.controller.target
        if self.pruner.controller.settled and before != now:
            self.warn(
                f'the target is {now} now, but the gates have settled at {before} and stay as they are; start a new '
                'run (load_from) for another target'
            )

    def begin(self, runner) -> None:
        """Act before the first iteration of a run that does not resume."""

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Tell the pruner the factor by which gradients are scaled."""
        self.pruner.loss_scale = loss_scale(runner.optim_wrapper)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """One step of the pruner; log its figures; if a checkpoint follows, check that all ranks agree.

        Raises:
            GatesDoNotAct, Diverged, RanksDiffer: The run cannot go on.
        """
        was_settled = self.pruner.controller.settled
        self.advance(runner)
        if self.figures is None or not was_settled:  # afterwards they stay the same
            with one_thread():
                self.figures = self.pruner.controller.scalars()
        for name, value in self.figures.items():
            runner.message_hub.update_scalar(f'train/{name}', value)
        if self.pruner.controller.settled and not was_settled:
            forget_best(runner)
        if self.is_time_to_leave():
            self.let_channels_leave(runner)
        elif self.left_at is not None and runner.iter == self.left_at + TIMED:
            runner.logger.info(f'{seconds_per_iteration(runner)} since channels left the model')
            self.left_at = None
        if any(self.saves_after_iter(runner, hook) for hook in runner.hooks):
            self.before_checkpoint(runner)

    def is_time_to_leave(self) -> bool:
        """Whether channels should leave the model now."""
        if self.shrink is False:
            return False
        kept = self.pruner.controller.kept
        if kept is not None and self.pruner.controller.settled:
            return not kept.vector.all()  # asked in every iteration: what else leaves with it need not be known yet
        looks = self.shrink is not True and self.pruner.done % LOOK_EVERY == 0
        return looks and self.pruner.leaving() >= self.shrink

    def let_channels_leave(self, runner) -> None:
        """Remove closed channels from the model of the run; if the optimiser cannot follow, warn and keep them."""
        try:
            refuse_unknown_state(self.pruner.optimizer, self.pruner.model)
        except ValueError as error:
            self.warn(f'closed channels stay in the model until it is slimmed: {error}')
            self.shrink = False
            return
        report = shrink_run(runner, self.pruner)
        macs, params, apart = report['macs'], report['params'], report['parity_error']
        compared = 'outputs not compared' if apart is None else f'relative error {apart:.1e}'
        runner.logger.info(
            f'Iteration {runner.iter + 1}: closed channels have left the model: {macs["before"] / 1e9:.3f} to '
            f'{macs["after"] / 1e9:.3f} GMACs, {params["before"] / 1e6:.3f} to {params["after"] / 1e6:.3f} million '
            f'parameters, {compared}; {seconds_per_iteration(runner)} until now'
        )
        self.left_at = runner.iter

    def after_train(self, runner) -> None:
        """Warn if the run was too short; if requested, write the slim product of the last and the best checkpoints."""
        if not self.pruner.controller.settled:
            self.warn(f'the run ended before the target was met: {self.pruner.controller.summary()}. {self.too_short}')
        if not self.export or not is_main_process():
            return
        last, work_dir = find_latest_checkpoint(runner.work_dir), Path(runner.work_dir)
        if last is None or self.saved_at is None:  # what the folder holds may be of another run
            self.warn('export=True, but the run has saved no checkpoint to export')
            return
        if self.saved_at < runner.iter:
            self.warn(f'what is exported was saved in iteration {self.saved_at} of {runner.iter}: set save_last=True')
        export_slim(runner.cfg, last, work_dir / 'slim')
        for checkpoint in best_checkpoints(runner):
            if read_checkpoint(checkpoint).get(STATE, {}).get('settled'):
                export_slim(runner.cfg, checkpoint, work_dir / f'slim_{Path(checkpoint).stem}')
            else:
                self.warn(
                    f'{checkpoint} was saved before the last gates had closed, and is not exported: there was no '
                    'validation after that. Set val_interval in train_cfg'
                )

    def advance(self, runner) -> None:
        """One step of the pruner."""
        with self.explained(runner):
            self.pruner.step()

    def after_train_epoch(self, runner) -> None:
        """Act before a checkpoint of the epoch."""
        self.before_checkpoint(runner)

    def before_val_epoch(self, runner) -> None:
        """Act before a checkpoint of the best model so far, while the weights are not yet exchanged for averages."""
        if self.pruner is not None and best_savers(runner):
            self.before_checkpoint(runner)

    def before_checkpoint(self, runner) -> None:
        """Check the model and that all ranks agree, before a CheckpointHook removes an earlier checkpoint.

        Raises:
            GatesDoNotAct, Diverged, RanksDiffer: The run cannot go on.
        """
        self.check(runner)
        self.pruner.check_ranks()

    def check(self, runner) -> None:
        """Check the model, see :meth:`~mmprune_gates.pruning.Pruner.check`."""
        with self.explained(runner):
            self.pruner.check()

    def saves_after_iter(self, runner, hook: Hook) -> bool:
        """Whether a hook saves a checkpoint after this iteration."""
        if not isinstance(hook, CheckpointHook) or hook.by_epoch:
            return False
        is_last = hook.save_last and self.is_last_train_iter(runner)
        return is_last or self.every_n_train_iters(runner, hook.interval, hook.save_begin)

    @contextmanager
    def explained(self, runner) -> Iterator[None]:
        """Add config keys that may be the cause to errors about gates that do not act."""
        try:
            yield
        except GatesDoNotAct as error:
            keys = [f'{key}={runner.cfg[key]!r} {does}' for key, does in REPLACING.items() if runner.cfg.get(key)]
            hint = f'. In this config {"; ".join(keys)}' if keys else ''
            raise GatesDoNotAct(f'{type(self).__name__}: {error}{hint}') from error

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Check that the gates act, and save what a resumed run needs."""
        if self.pruner is not None:
            self.check(runner)
            checkpoint[STATE] = self.pruner.state_dict()
            self.saved_at = checkpoint['meta']['iter']

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Give the model the checkpoint's shape, and keep the saved state until it is known whether the run resumes.

        Raises:
            ValueError: The run resumes, but not from a run that prunes.
        """
        self.loaded = tree_map_only(Tensor, Tensor.cpu, checkpoint.get(STATE))  # a runner loads it on the GPU
        if self.loaded is None and self.pruner is not None and resumes(runner):
            raise ValueError(
                f'{type(self).__name__}: the checkpoint to resume from is of a run without pruning, and the phases of '
                'this one would not fit into what is left of it: start from its weights with load_from instead'
            )
        if self.loaded is not None:
            reshape_run(runner, self.pruner, self.loaded)

    def warn(self, text: str) -> None:
        """Log a warning under the hook's name."""
        print_log(f'{type(self).__name__}: {text}', 'current', logging.WARNING)


def seconds_per_iteration(runner) -> str:
    """Mean time of the last iterations, in words."""
    times = runner.message_hub.log_scalars.get('train/time')
    return 'unknown time per iteration' if times is None else f'{times.mean(TIMED):.4f} s per iteration'


def forget_best(runner) -> None:
    """Restart the search for the best checkpoint: the best one so far is not a pruned model."""
    for hook in best_savers(runner):
        for key in ('best_score', *(f'best_score_{metric}' for metric in hook.key_indicators)):
            runner.message_hub.pop_info(key, None)


def best_savers(runner) -> list[CheckpointHook]:
    """The hooks that save the best checkpoint by some metric."""
    return [hook for hook in runner.hooks if isinstance(hook, CheckpointHook) and hook.save_best]


def best_checkpoints(runner) -> list[str]:
    """Paths of the best checkpoints, by any metric, that the run has saved and that exist."""
    paths = []
    for hook in best_savers(runner):
        by_metric = getattr(hook, 'best_ckpt_path_dict', {})
        paths += [*by_metric.values(), getattr(hook, 'best_ckpt_path', None)]
    return [path for path in paths if path and Path(path).is_file()]
