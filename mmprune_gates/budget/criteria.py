"""What decides which channels stay: a criterion scores channels, higher = keep, and knows nothing of budgets.

A criterion of one's own derives from :class:`Criterion`, overrides :meth:`Criterion.scores`, and is registered in
``mmprune_gates.CRITERIA``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmprune_gates.channels.kept import Kept
from mmprune_gates.checks import WHOLE, Rule, checked, is_number
from mmprune_gates.gates import GateSet

MOMENTUM = Rule('a share in [0, 1)', lambda value: is_number(value) and 0 <= value < 1)
Reduce = Callable[[Tensor], object]
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def alone(tensor: Tensor) -> None:
    """The mean over the ranks of a run that is not distributed: nothing changes."""


class Criterion:
    """Base of all criteria. What one gathers is the same on all ranks, so that a checkpoint of one rank holds it.

    Attributes:
        gates: The gates whose channels are scored.
        model: Their model.
        reduce: Replaces a tensor by its mean over the ranks of a distributed run.
    """

    gates: GateSet
    model: nn.Module | None
    reduce: Reduce

    def bind(self, gates: GateSet, model: nn.Module | None = None, reduce: Reduce = alone) -> Criterion:
        """Get to know what is scored; returns itself."""
        self.gates = gates
        self.model = model
        self.reduce = reduce
        self.forget()
        return self

    def observe(self, grads: Mapping[str, Tensor]) -> None:
        """Take in a mini-batch.

        Args:
            grads: Group name -> gradient of the loss with respect to its gate.
        """

    def scores(self) -> Tensor | None:
        """(num_channels,) scores, higher = keep, of any value where there is no gate; None if nothing is known yet."""
        raise NotImplementedError

    def forget(self) -> None:
        """Gather scores anew."""

    def narrow(self, gates: GateSet, kept: Kept) -> None:
        """Go on with the gates of what is left once channels have gone; what was gathered for the others is lost.

        Args:
            gates: Those gates.
            kept: What is left.
        """
        self.gates = gates
        state = self.state_dict()
        wide = {name for name, value in state.items() if isinstance(value, Tensor) and value.shape == kept.vector.shape}
        self.load_state_dict({name: v[kept.vector] if name in wide else v for name, v in state.items()})

    def state_dict(self) -> dict[str, Any]:
        """State to resume from; tensors and plain values only."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""

    def bound_model(self) -> nn.Module:
        """The model that :meth:`bind` was given.

        Raises:
            ValueError: It was given none.
        """
        if self.model is None:
            raise ValueError(f'{type(self).__name__} needs the model, whose weights it reads: bind(gates, model)')
        return self.model

    def weights(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(parameter, channels along its first dimension) of all that makes channels, or norms them."""
        slots = self.gates.graph.slots
        for name, parameter in self.bound_model().named_parameters():
            index = slots.get(name, {}).get(0)
            if index is not None:
                yield parameter, index

    def summed(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """(num_channels,) sums of values over channels, from (values, channels) pairs."""
        total = torch.zeros(self.gates.graph.num_channels + 1, dtype=torch.double)  # last: what has no channel
        for values, index in pairs:
            rows = index % len(total)
            total.index_add_(0, rows, values.detach().cpu().double())
        return total[:-1]


class MeanGradient(Criterion):
    """Running mean of abs(dL/dg), this project's choice for GDP.

    Args:
        momentum: Of the running mean.
    """

    def __init__(self, momentum: float = 0.98) -> None:
        self.momentum = checked('momentum', momentum, MOMENTUM)

    def forget(self) -> None:
        """Begin at zero."""
        self.mean = torch.zeros(self.gates.graph.num_channels)

    def observe(self, grads: Mapping[str, Tensor]) -> None:
        """Add a mini-batch, unless it overflows."""
        grad = self.gates.flat(grads)
        self.reduce(grad)
        if grad.isfinite().all():
            mean = self.mean.to(grad.device)
            self.mean = mean.lerp(grad.abs().to(mean.dtype), 1 - self.momentum)

    def scores(self) -> Tensor:
        """(num_channels,) the mean."""
        return self.mean

    def state_dict(self) -> dict[str, Any]:
        """The mean."""
        return {'mean': self.mean.cpu()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        self.mean = state['mean'].clone()


class Taylor(Criterion):
    """Sum over mini-batches of abs(phi * dL/dphi) (Gate Decorator, equations 6 to 8), mean over ranks."""

    def forget(self) -> None:
        """Begin at zero."""
        self.sum = torch.zeros(self.gates.graph.num_channels, dtype=torch.double)
        self.usable = torch.zeros(())  # mini-batches that were finite

    def observe(self, grads: Mapping[str, Tensor]) -> None:
        """Add a mini-batch, unless mixed precision has overflowed in it and its step is skipped."""
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

    def state_dict(self) -> dict[str, Any]:
        """Sum and count."""
        return {'sum': self.sum.cpu(), 'usable': self.usable.cpu()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        self.sum = state['sum'].clone()
        self.usable = state['usable'].clone()


class Magnitude(Criterion):
    """L2 norm of all weights that make a channel or norm it."""

    def scores(self) -> Tensor:
        """(num_channels,) the norm."""
        squares = []
        for weight, index in self.weights():
            filters = weight.reshape(len(weight), -1)
            squares.append((filters.square().sum(1), index))
        return self.summed(squares).sqrt()


class NormScale(Criterion):
    """Sum of abs(gamma) over the norms of a channel (Liu et al., Network Slimming, ICCV 2017)."""

    def scores(self) -> Tensor:
        """(num_channels,) the sum."""
        gammas = {id(module.weight) for module in self.bound_model().modules() if isinstance(module, NORMS)}
        sizes = []
        for weight, index in self.weights():
            if id(weight) in gammas:
                sizes.append((weight.abs(), index))
        return self.summed(sizes)


class Random(Criterion):
    """The same random score for a channel all the time: the baseline that every criterion has to beat.

    Args:
        seed: Of the scores.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = checked('seed', seed, WHOLE)

    def scores(self) -> Tensor:
        """(num_channels,) uniform in [0, 1)."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.rand(self.gates.graph.num_channels, generator=generator)
