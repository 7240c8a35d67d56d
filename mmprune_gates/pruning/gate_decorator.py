"""Gate Decorator in any training loop.

You et al., Gate Decorator: Global Filter Pruning Method for Accelerating Deep Convolutional Neural Networks,
NeurIPS 2019, arXiv 1909.08174. docs/gate_decorator.md says what comes from the paper and what is this project's choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmprune_gates.budget import Cycle, Taylor, TickTock
from mmprune_gates.budget.criteria import MeanGradient
from mmprune_gates.budget.tick_tock import FINETUNE, TICK, TOCK
from mmprune_gates.channels.calls import Inputs, in_mode
from mmprune_gates.checks import (
    COUNT,
    NOT_NEGATIVE,
    NUMBER,
    checked,
    optional,
    pair_of,
    patterns,
)
from mmprune_gates.gates import DecoratorGate, gated_norms, take_over_affine
from mmprune_gates.pruning.gate_params import matching_modules, own_param_group
from mmprune_gates.pruning.pruner import Pruner
from mmprune_gates.pruning.ranks import mean_over_ranks
from mmprune_gates.pruning.refusals import refuse_other
from mmprune_gates.pruning.settings import Settings
from mmprune_gates.pruning.threads import one_thread

NEAR = 0.2  # part of the way from the target back to the whole model, within which a model is near its target


@dataclass(frozen=True, kw_only=True)
class GateDecoratorSettings(Settings):
    """Settings of a run of Gate Decorator. Defaults are the paper's, except for floor and divisor.

    The criterion is what a Tick gathers; the paper's Taylor importance by default.

    Attributes:
        fraction: Share of all filters that a Tick closes; the paper has 0.002 for ResNets, 0.01 for VGG and FCN.
        tick, tock: Lengths of the phases in steps; where a hook makes the settings, as its ``by_epoch`` says.
        ticks: Number of Ticks after each Tock.
        tick_lr: Learning rate in a Tick.
        tock_lr: Learning rate at both ends and in the middle of a Tock, and of the fine-tune.
        penalty: Weight of the L1 penalty on the gates in a Tock.
        macs_exponent: Power of a channel's marginal cost that divides its importance; 0 as in the paper.
        classifier: Shell patterns, or one, of the modules that learn in a Tick besides the gates; by default the layers
            whose output is an output of the model (``conv_seg`` of every head, ``fc``).

    Raises:
        ValueError: A value is out of range.
    """

    rules = {
        'tick_lr': NOT_NEGATIVE,
        'tock_lr': pair_of(NOT_NEGATIVE),
        'penalty': NOT_NEGATIVE,
        'macs_exponent': NUMBER,
    }
    fraction: float = 0.002
    tick: int = 1
    tock: int = 10
    ticks: int = 10
    tick_lr: float = 1e-3
    tock_lr: Sequence[float] = (1e-3, 1e-2)
    penalty: float = 1e-3
    macs_exponent: float = 0.0
    classifier: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        patterns('classifier', self.classifier)
        if isinstance(self.criterion, MeanGradient):
            raise ValueError('criterion=MeanGradient is for gates that all modules of a group share; use Taylor here')
        _ = self.cycle  # refuses values out of range

    @property
    def cycle(self) -> Cycle:
        """Lengths of the phases."""
        return Cycle(self.tick, self.tock, self.ticks, self.fraction)


class GateDecorator(Pruner):
    """A Tock first, then Ticks and a Tock in turn until a target is met; the rest of the run is the fine-tune.

    It sets the learning rates and which parameters learn. The loop chooses the data of a Tick by asking :attr:`phase`.

    Args:
        model, example_inputs, optimizer: As in :class:`Pruner`.
        total_steps: Length of the run; None if each :meth:`step` is told how many are left.
        cycle: Lengths of the phases in steps, if they are not those of the settings.
        begin: Whether the gates take over the affine of norms now; if not, call :meth:`begin` before training.
        **settings: Fields of :class:`GateDecoratorSettings`, and ``forward``, ``train_forward``, ``units``,
            ``attention`` as in :class:`Pruner`.
    """

    gate = DecoratorGate
    controller: TickTock

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Inputs | None,
        optimizer: torch.optim.Optimizer,
        *,
        total_steps: int | None = None,
        cycle: Cycle | None = None,
        begin: bool = True,
        **settings: Any,
    ) -> None:
        self.settings, traced = GateDecoratorSettings.split(settings)
        self.total_steps = checked('total_steps', total_steps, optional(COUNT))
        own, base = self.settings, base_rate(optimizer)
        super().__init__(model, example_inputs, optimizer, exclude=own.exclude, **traced)
        with self.released_if_it_fails():
            cost, criterion = self.bound(own.cost, own.criterion or Taylor(), mean_over_ranks)
            cycle = cycle or own.cycle
            share = own.goal.share(cost)
            self.controller = TickTock(self.gates, share, own, cycle, cost, criterion, own.macs_exponent)
            self.trained = trained_parameters(model)
            self.learning = self.learning_sets()
            own_param_group(optimizer, self.gates, base)
            self.multipliers = [group.get('initial_lr', group['lr']) / base for group in optimizer.param_groups]
            if begin:
                self.begin()

    @property
    def phase(self) -> str:
        """``tick``, ``tock`` or ``finetune``."""
        return self.controller.phase

    def begin(self) -> None:
        """Let the gates take over the affine of norms; call this once the model has its initial weights.

        Channels that are closed in these weights, since they come from another run, stay closed.
        """
        self.controller.kept = self.gates.kept()
        take_over_affine(self.gates)
        self.prepare()

    def learning_sets(self) -> dict[str, set[str]]:
        """Phase -> names of the parameters that learn in it.

        Raises:
            ValueError: No classifier is found.
        """
        wanted = patterns('classifier', self.settings.classifier) or self.gates.graph.classifiers
        if not (heads := matching_modules(self.model, wanted)):
            raise ValueError(
                'no layer makes an output of the model by itself; name the modules that learn in a Tick, for example '
                "classifier=('decode_head.conv_seg',)"
            )
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        tick = {names[id(parameter)] for module in (self.gates, *heads) for parameter in module.parameters()}
        replaced = {names[id(scale.module.weight)] for scale in gated_norms(self.gates)}  # by phi
        return {TICK: tick, TOCK: self.trained - replaced, FINETUNE: self.trained - replaced}

    def is_near_target(self) -> bool:
        """Whether a fifth of what has to close is left at most, and further Ticks follow."""
        aim = self.controller.aim
        return self.controller.share <= aim + NEAR * (1 - aim) and not self.controller.settled

    def leaving(self) -> float:
        """As in every pruner; 0 in a Tick: a distributed wrapper made then would never synchronise what is frozen."""
        return 0.0 if self.phase == TICK else super().leaving()

    def altered(self, name: str, grad: Tensor) -> Tensor:
        """Adds the penalty's gradient in a Tock; 0 for closed gates, which would otherwise add to the gradient norm."""
        theta = self.gates[name].theta.detach()
        if self.phase == TOCK:
            grad = grad + self.loss_scale * self.settings.penalty * theta.sign()
        return grad.masked_fill(theta == 0, 0)

    @one_thread()
    def step(self, remaining: int | None = None) -> str | None:
        """One step of the cycle. Gates close only if they have acted.

        Args:
            remaining: Steps left of the run; not needed where ``total_steps`` is known.

        Returns:
            The phase that has ended, if one has.
        """
        cycle, before = self.controller, self.phase
        cycle.hold()
        grads = self.taken_grads()
        if before == TICK:
            cycle.observe(grads)
            if cycle.done + 1 >= cycle.length and cycle.criterion.scores() is not None:
                self.check()
        self.done += 1
        ended = cycle.step(self.left() if remaining is None else remaining)
        self.prepare()
        return before if ended else None

    def left(self) -> int:
        """Steps left of the run.

        Raises:
            TypeError: The length of the run is not known.
        """
        if self.total_steps is None:
            raise TypeError(f'{type(self).__name__}: give total_steps, or tell each step what remains')
        return self.total_steps - self.done

    def prepare(self) -> None:
        """Set which parameters learn in the next step, and the learning rates."""
        learning = self.learning[self.phase]
        for name, parameter in self.model.named_parameters():
            if name not in self.trained:
                continue
            learns = name in learning
            if parameter.requires_grad and not learns:
                parameter.grad = None  # else the optimiser would use it again
            parameter.requires_grad_(learns)
        low, high = self.settings.tock_lr
        rate = self.settings.tick_lr
        if self.phase != TICK:
            rate = low + (high - low) * (1 - abs(2 * self.controller.progress - 1))
        for group, multiplier in zip(self.optimizer.param_groups, self.multipliers, strict=True):
            group['lr'] = rate * multiplier

    def finish(self) -> dict[str, Any]:
        """As in every pruner; all parameters that were trained can be trained again."""
        report = super().finish()
        for name, parameter in self.model.named_parameters():
            if name in self.trained:
                parameter.requires_grad_(True)
        return report

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        super().load_state_dict(state)
        if self.total_steps is not None:
            self.fit_finetune(self.left())
        self.prepare()

    def fit_finetune(self, remaining: int) -> None:
        """Let a fine-tune that has begun end with the run, whose length may have changed since.

        Args:
            remaining: Steps left of the run.
        """
        if self.phase == FINETUNE:
            self.controller.length = self.controller.done + remaining
            self.prepare()


def trained_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters that learn in training mode: some models freeze stages when they enter it."""
    with in_mode(model, training=True):
        return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def base_rate(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate that the rates of the phases replace: the optimiser's own; the largest if no group has that.

    Raises:
        ValueError: It is not positive.
    """
    refuse_other(optimizer)
    rates = [group.get('initial_lr', group['lr']) for group in optimizer.param_groups]
    own = optimizer.defaults['lr']
    rate = own if own in rates else max(rates)
    if rate is None or not rate > 0:
        raise ValueError(
            f'the learning rate of {type(optimizer).__name__} is {rate}; the rates of the phases are set in proportion '
            'to it: give it a positive one'
        )
    return rate
