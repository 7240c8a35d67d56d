"""Gate Decorator as an mmengine hook: which phase, what learns in it, at what rate, on which data."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from mmengine.dist import all_reduce
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop
from torch import Tensor, nn

from mmprune_gates.budget import Cycle, Limits, TickTock, checked_target
from mmprune_gates.budget.tick_tock import FINETUNE, TICK, TOCK
from mmprune_gates.engine.gate_params import matching_modules, own_param_group, unwrapped
from mmprune_gates.engine.pruning_hook import PruningHook
from mmprune_gates.engine.registry import HOOKS
from mmprune_gates.engine.tick_data import Alternating, endless, epoch_length, subset_loader
from mmprune_gates.gates import gated_norms, take_over_affine


@HOOKS.register_module()
class GateDecoratorHook(PruningHook):
    """Tick-Tock pruning of a ``GatedModel`` with ``gates=dict(type='DecoratorGate')``.

    A Tock first, then ``ticks`` Ticks and a Tock in turn until the MACs target is met; the rest of the run is the
    fine-tune. The hook sets the learning rates itself: the config's ``param_scheduler`` is not used, and the log
    says so. Defaults are the paper's, but for what :class:`~mmprune_gates.budget.Limits` has.

    Args:
        target_macs: Kept MACs / original MACs, in (0, 1].
        fraction: Share of all filters that a Tick closes; the paper has 0.002 for ResNets, 0.01 for VGG and FCN.
        tick, tock: Lengths of the phases, in epochs.
        ticks: Ticks after each Tock.
        by_epoch: Whether lengths are in epochs; if not, in iterations (iteration-based loops only).
        subset: Share of the training data that Ticks see.
        tick_lr: Learning rate in a Tick.
        tock_lr: Learning rate at both ends and in the middle of a Tock, and of the fine-tune.
        penalty: Weight of the L1 penalty on the gates in a Tock.
        macs_exponent: Power of a channel's marginal MACs that divides its importance; 0 as in the paper.
        floor, divisor, exclude: What stays; see :class:`~mmprune_gates.budget.Limits`.
        classifier: Shell patterns of the modules that learn in a Tick besides the gates; by default the layers
            whose output is an output of the model (``conv_seg`` of every head, ``fc``).

    Raises:
        ValueError: A value out of range; a model without such gates; a target out of reach under the limits.
    """

    per_module, needs = True, 'DecoratorGate'
    priority = 'ABOVE_NORMAL'  # before the hook that seeds the sampler of an epoch's data

    def __init__(
        self,
        target_macs: float,
        fraction: float = 0.002,
        tick: int = 1,
        tock: int = 10,
        ticks: int = 10,
        by_epoch: bool = True,
        subset: float = 1.0,
        tick_lr: float = 1e-3,
        tock_lr: Sequence[float] = (1e-3, 1e-2),
        penalty: float = 1e-3,
        macs_exponent: float = 0.0,
        floor: float = 0.05,
        divisor: int = 1,
        exclude: Sequence[str] = (),
        classifier: Sequence[str] = (),
    ) -> None:
        super().__init__(exclude)
        self.target = checked_target(target_macs)
        self.lengths, self.by_epoch = Cycle(tick, tock, ticks, fraction), by_epoch
        self.limits = Limits(floor, divisor, self.exclude)
        if not 0 < subset <= 1:
            raise ValueError(f'GateDecoratorHook: subset is a share of the training data, in (0, 1]; got {subset}')
        if penalty < 0:
            raise ValueError(f'GateDecoratorHook: penalty must not be negative, got {penalty}')
        self.subset, self.penalty, self.macs_exponent = subset, penalty, macs_exponent
        self.tick_lr, (self.low, self.high) = tick_lr, tock_lr
        self.classifier = tuple(classifier)

    @property
    def cycle(self) -> TickTock:
        """The pruner."""
        return self.pruner

    def make_pruner(self, runner) -> TickTock:
        """The cycle; the gates get an optimiser group of their own.

        Raises:
            ValueError: A distributed run that does not look for unused parameters.
        """
        model = unwrapped(runner)
        if is_model_wrapper(runner.model) and not getattr(runner.model, 'find_unused_parameters', True):
            raise ValueError(
                'GateDecoratorHook freezes weights in its Ticks: set find_unused_parameters=True in the config'
            )
        optimizer = runner.optim_wrapper.optimizer
        own_param_group(optimizer, self.gates, optimizer.defaults['lr'])
        base = optimizer.defaults['lr']
        self.multipliers = [group.get('initial_lr', group['lr']) / base for group in optimizer.param_groups]
        self.set_up_data(runner)
        reduce = functools.partial(all_reduce, op='sum')
        cycle = TickTock(self.gates, self.target, self.limits, self.phases, self.macs_exponent, reduce)
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.learning = self.learning_sets(model)
        if runner.param_schedulers:
            names = ', '.join(type(scheduler).__name__ for scheduler in runner.param_schedulers)
            runner.logger.warning(
                f'GateDecoratorHook sets the learning rate (Tick {self.tick_lr}, Tock and fine-tune {self.low} to '
                f"{self.high} and back): the config's param_scheduler ({names}) is not used"
            )
        runner.param_schedulers = []
        return cycle

    def set_up_data(self, runner) -> None:
        """The data of Ticks and of Tocks, and the lengths of the phases in iterations.

        Raises:
            ValueError: Lengths in iterations, and a loop that goes by epochs.
        """
        loop = runner.train_loop
        self.epochs = isinstance(loop, EpochBasedTrainLoop)
        if self.epochs and not self.by_epoch:
            raise ValueError('GateDecoratorHook: an EpochBasedTrainLoop needs by_epoch=True, with lengths in epochs')
        self.full, self.part = loop.dataloader, loop.dataloader
        if self.subset < 1:
            self.part = subset_loader(runner, self.full.dataset, self.subset)
        own = self.lengths
        tick, tock = (epoch_length(self.part), epoch_length(self.full)) if self.by_epoch else (1, 1)
        self.phases = Cycle(own.tick * tick, own.tock * tock, own.ticks, own.fraction)

    def learning_sets(self, model: nn.Module) -> dict[str, set[int]]:
        """Phase -> identities of the parameters that learn in it.

        Raises:
            ValueError: The classifier is not found.
        """
        names = self.classifier or self.gates.graph.classifiers
        if not (heads := matching_modules(model, names)):
            raise ValueError(
                'GateDecoratorHook: no layer makes an output of the model by itself; name the modules that learn in a '
                "Tick, for example classifier=('decode_head.conv_seg',)"
            )
        gates = {id(parameter) for parameter in self.gates.parameters()}
        tick = gates | {id(parameter) for head in heads for parameter in head.parameters()}
        replaced = {id(scale.module.weight) for _, scale in gated_norms(self.gates)}  # phi stands in gamma's place
        tock = {id(parameter) for parameter in self.trained} - replaced
        return {TICK: tick, TOCK: tock, FINETUNE: tock}

    def before_train(self, runner) -> None:
        """Go on where a resumed run was, or let the gates take over."""
        super().before_train(runner)
        if not self.resumes(runner):
            take_over_affine(self.gates)
            self.log_plan(runner)
        if self.subset < 1 and not self.epochs:
            full, part = runner.train_loop.dataloader_iterator, endless(self.part)
            in_tick = functools.partial(lambda cycle: cycle.phase == TICK, self.cycle)
            runner.train_loop.dataloader_iterator = Alternating(full, part, in_tick, runner.iter, self.cycle.scored)
        self.prepare(runner)

    def before_train_epoch(self, runner) -> None:
        """In a loop that goes by epochs, take the data of the phase."""
        if self.epochs:
            runner.train_loop.dataloader = self.part if self.cycle.phase == TICK else self.full

    def altered(self, name: str, grad: Tensor) -> Tensor:
        """With the penalty's gradient in a Tock."""
        if self.cycle.phase != TOCK:
            return grad
        return grad + self.scale * self.penalty * self.gates[name].theta.detach().sign()

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """One step of the cycle; get ready for the next iteration; publish figures. Gates close only if they act."""
        cycle, before, wasted = self.cycle, self.cycle.phase, self.cycle.wasted
        cycle.hold()
        grads = self.taken_grads()
        if before == TICK:
            cycle.observe(grads)
            if cycle.done + 1 >= cycle.length and cycle.usable:
                self.prove(runner)
        if cycle.step(self.remaining(runner)):
            runner.logger.info(f'{before} ended, {cycle.phase} begins: {cycle.summary()}')
        if cycle.wasted > wasted:
            runner.logger.warning('GateDecoratorHook: no mini-batch of this Tick had finite gradients; nothing closed')
        self.prepare(runner)
        for name, value in cycle.scalars().items():
            runner.message_hub.update_scalar(f'train/{name}', value)

    def after_train(self, runner) -> None:
        """Say so if the run was too short."""
        if self.cycle.share > self.target:
            runner.logger.warning(
                f'GateDecoratorHook: the run ended before the target was met: {self.cycle.summary()}. Train longer, or '
                'close a larger fraction in each Tick'
            )

    def prepare(self, runner) -> None:
        """Set what learns in the next iteration, and how fast."""
        learning = self.learning[self.cycle.phase]
        for parameter in self.trained:
            learns = id(parameter) in learning
            if parameter.requires_grad and not learns:
                parameter.grad = None  # else the optimiser would go on with it
            parameter.requires_grad_(learns)
        rate = self.tick_lr
        if self.cycle.phase != TICK:
            rate = self.low + (self.high - self.low) * (1 - abs(2 * self.cycle.progress - 1))
        groups = runner.optim_wrapper.optimizer.param_groups
        for group, multiplier in zip(groups, self.multipliers, strict=True):
            group['lr'] = rate * multiplier

    def remaining(self, runner) -> int:
        """Iterations after this one, all on the full data."""
        if self.epochs:
            return (runner.max_epochs - runner.epoch - 1) * len(self.full)
        return runner.max_iters - runner.iter - 1

    def log_plan(self, runner) -> None:
        """Say what will come, as far as it can be known."""
        ticks, phases = self.cycle.expected_ticks(), self.phases
        tocks = 1 + ticks // phases.ticks
        runner.logger.info(
            f'Gate Decorator: {self.cycle.filters} filters, {phases.fraction * self.cycle.filters:.1f} of them closed '
            f'in each Tick; about {ticks} Ticks of {phases.tick} and {tocks} Tocks of {phases.tock} iterations, '
            f'{ticks * phases.tick + tocks * phases.tock} in all, before the fine-tune'
        )
