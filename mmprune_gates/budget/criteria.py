"""Criteria: each scores channels, higher = keep, and knows nothing of budgets.

A custom criterion derives from :class:`Criterion`, overrides :meth:`Criterion.scores`, and is registered in
``mmprune_gates.CRITERIA``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmprune_gates.channels.index import unpaired
from mmprune_gates.channels.kept import Kept
from mmprune_gates.checks import WHOLE, Rule, checked, is_number
from mmprune_gates.gates import GateSet, gated_norms

MOMENTUM = Rule('a share in [0, 1)', lambda value: is_number(value) and 0 <= value < 1)
Reduce = Callable[[Tensor], object]
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def alone(tensor: Tensor) -> None:
    """Mean over the ranks of a run that is not distributed: the tensor stays as it is."""


class Criterion:
    """Base of all criteria. Gathered state is the same on all ranks, so the checkpoint of one rank holds all of it.

    Attributes:
        gathered: Names of the attributes, tensors, that hold what was gathered.
        gates: The gates whose channels are scored.
        model: Their model.
        reduce: Replaces a tensor by its mean over the ranks of a distributed run.
    """

    gathered: tuple[str, ...] = ()
    gates: GateSet
    model: nn.Module | None
    reduce: Reduce

    def bind(self, gates: GateSet, model: nn.Module | None = None, reduce: Reduce = alone) -> Criterion:
        """Bind the criterion to the gates whose channels it scores, with nothing gathered; returns itself."""
        self.gates = gates
        self.model = model
        self.reduce = reduce
        self.forget()
        return self

    def observe(self, grads: Mapping[str, Tensor]) -> None:
        """Take in the gate gradients of a mini-batch.

        Args:
            grads: Group name -> gradient of the loss with respect to its gate.
        """

    def scores(self) -> Tensor | None:
        """(num_channels,) scores, higher = keep; arbitrary where there is no gate; None if nothing is known yet."""
        raise NotImplementedError

    def forget(self) -> None:
        """Discard what was gathered."""

    def narrow(self, gates: GateSet, kept: Kept) -> None:
        """Continue with the gates that remain after channels were removed; drop what was gathered for the removed ones.

        Args:
            gates: The remaining gates.
            kept: The channels that were kept, in the graph before the removal.
        """
        self.gates = gates
        stays, narrow = kept.staying, {}
        for name, value in self.state_dict().items():
            is_wide = isinstance(value, Tensor) and value.shape == stays.shape
            narrow[name] = value[stays] if is_wide else value
        self.load_state_dict(narrow)

    def state_dict(self) -> dict[str, Any]:
        """State to resume from; tensors and plain values only."""
        found = {}
        for name in self.gathered:
            found[name] = getattr(self, name).cpu()
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        for name in self.gathered:
            setattr(self, name, state[name].clone())

    def bound_model(self) -> nn.Module:
        """The model passed to :meth:`bind`.

        Raises:
            ValueError: None was passed.
        """
        if self.model is None:
            raise ValueError(f'{type(self).__name__} needs the model, whose weights it reads: bind(gates, model)')
        return self.model

    def weights(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(parameter, channels along its first dimension) for each parameter that produces or normalises channels."""
        slots = self.gates.graph.slots
        for name, parameter in self.bound_model().named_parameters():
            index = slots.get(name, {}).get(0)
            if index is not None:
                yield parameter, index

    def summed(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """(num_channels,) sum of the values of each channel, from (values, channels) pairs."""
        total = torch.zeros(self.gates.graph.num_channels + 1, dtype=torch.double)  # last: positions without a channel
        for values, index in pairs:
            for channels in unpaired(index):
                total.index_add_(0, channels % len(total), values.detach().cpu().double())
        return total[:-1]


class MeanGradient(Criterion):
    """Running mean of abs(dL/dg), this project's choice for GDP.

    Args:
        momentum: Momentum of the running mean.
    """

    gathered = ('mean',)

    def __init__(self, momentum: float = 0.98) -> None:
        self.momentum = checked('momentum', momentum, MOMENTUM)

    def forget(self) -> None:
        """Begin at zero."""
        self.mean = torch.zeros(self.gates.graph.num_channels)

    def observe(self, grads: Mapping[str, Tensor]) -> None:
        """Add a mini-batch, unless its gradients are not finite."""
        grad = self.gates.flat(grads)
        self.reduce(grad)
        if grad.isfinite().all():
            mean = self.mean.to(grad.device)
            self.mean = mean.lerp(grad.abs().to(mean.dtype), 1 - self.momentum)

    def scores(self) -> Tensor:
        """(num_channels,) the running mean."""
        return self.mean


class Taylor(Criterion):
    """Sum over mini-batches of abs(phi * dL/dphi) (Gate Decorator, equations 6 to 8), mean over ranks."""

    gathered = ('sum', 'usable')

    def forget(self) -> None:
        """Begin at zero."""
        self.sum = torch.zeros(self.gates.graph.num_channels, dtype=torch.double)
        self.usable = torch.zeros(())  # mini-batches that were finite

    def observe(self, grads: Mapping[str, Tensor]) -> None:
        """Add a mini-batch, unless it overflows in mixed precision, so that its step is skipped."""
        if not grads:
            return
        importance = {name: self.gates[name].importance(grad) for name, grad in grads.items()}
        score = self.gates.flat(importance).double()
        finite = score.isfinite().all()
        counted = torch.where(finite, score, 0)
        one_or_none = finite.double().reshape(1)
        added = torch.cat([counted, one_or_none])
        self.reduce(added)
        self.sum = self.sum.to(added.device) + added[:-1]
        self.usable = self.usable.to(added.device) + added[-1]

    def scores(self) -> Tensor | None:
        """(num_channels,) the sum; None if no mini-batch was finite."""
        return self.sum if self.usable > 0 else None


class Magnitude(Criterion):
    """L2 norm of all weights that produce or normalise a channel."""

    def scores(self) -> Tensor:
        """(num_channels,) the norm."""
        squares = []
        for weight, index in self.weights():
            filters = weight.reshape(len(weight), -1)
            squares.append((filters.square().sum(1), index))
        return self.summed(squares).sqrt()


class NormScale(Criterion):
    """Sum of abs(gamma) over the norms of a channel (Liu et al., Network Slimming, ICCV 2017).

    Gates of Gate Decorator, which take over a part of gamma, count as a factor of it.
    """

    def scores(self) -> Tensor:
        """(num_channels,) the sum."""
        gammas = {id(module.weight) for module in self.bound_model().modules() if isinstance(module, NORMS)}
        taken_over = {}
        for scale in gated_norms(self.gates):
            if scale.sources[0][1].per_module:
                taken_over[id(scale.module.weight)] = scale.value().detach()
        sizes = []
        for weight, index in self.weights():
            if id(weight) in gammas:
                factor = taken_over.get(id(weight), 1.0)
                sizes.append((weight.abs() * factor, index))
        return self.summed(sizes)


class Random(Criterion):
    """A fixed random score for each channel: the baseline that every criterion has to beat.

    Args:
        seed: Seed of the scores.
    """

    gathered = ('drawn',)

    def __init__(self, seed: int = 0) -> None:
        self.seed = checked('seed', seed, WHOLE)

    def bind(self, gates: GateSet, model: nn.Module | None = None, reduce: Reduce = alone) -> Criterion:
        """Draw the scores, uniform in [0, 1); returns itself."""
        generator = torch.Generator().manual_seed(self.seed)
        self.drawn = torch.rand(gates.graph.num_channels, generator=generator)
        return super().bind(gates, model, reduce)

    def scores(self) -> Tensor:
        """(num_channels,) the scores."""
        return self.drawn
