"""What decides which channels stay: a criterion scores channels, higher = keep, and knows nothing of budgets.

A criterion of one's own derives from :class:`Criterion`, overrides :meth:`Criterion.scores`, and is registered in
``mmprune_gates.CRITERIA``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmprune_gates.checks import WHOLE, Rule, checked, is_number
from mmprune_gates.gates import GateSet

MOMENTUM = Rule('a share in [0, 1)', lambda value: is_number(value) and 0 <= value < 1)
Reduce = Callable[[Tensor], object]
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Criterion:
    """Base of all criteria.

    Attributes:
        gates: The gates whose channels are scored.
        model: Their model.
        reduce: Sums a tensor over the ranks of a distributed run, in place.
    """

    gates: GateSet
    model: nn.Module | None
    reduce: Reduce

    def bind(self, gates: GateSet, model: nn.Module | None = None, reduce: Reduce = lambda tensor: None) -> Criterion:
        """Get to know what is scored; returns itself."""
        self.gates, self.model, self.reduce = gates, model, reduce
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

    def state_dict(self) -> dict[str, Any]:
        """State to resume from; tensors and plain values only."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""

    def weights(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(parameter, channels along its first dimension) of all that makes channels, or norms them."""
        for name, parameter in self.model.named_parameters():
            if (index := self.gates.graph.slots.get(name, {}).get(0)) is not None:
                yield parameter, index

    def summed(self, pairs: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
        """(num_channels,) sums of values over channels, from (values, channels) pairs."""
        total = torch.zeros(self.gates.graph.num_channels + 1, dtype=torch.double)  # last: what has no channel
        for values, index in pairs:
            total.index_add_(0, index % len(total), values.detach().cpu().double())
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
        if bool(grad.isfinite().all()):
            self.mean = self.mean.to(grad.device).lerp(grad.abs(), 1 - self.momentum)

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
    """Sum over mini-batches of abs(phi * dL/dphi) (Gate Decorator, equations 6 to 8), and over ranks."""

    def forget(self) -> None:
        """Begin at zero."""
        self.sum = torch.zeros(self.gates.graph.num_channels, dtype=torch.double)
        self.usable = torch.zeros(())  # mini-batches that were finite

    def observe(self, grads: Mapping[str, Tensor]) -> None:
        """Add a mini-batch, unless mixed precision has overflowed in it and its step is skipped."""
        if not grads:
            return
        score = self.gates.flat({name: self.gates[name].importance(grad) for name, grad in grads.items()}).double()
        finite = score.isfinite().all()
        self.sum = self.sum.to(score.device) + torch.where(finite, score, 0)
        self.usable = self.usable.to(score.device) + finite

    def scores(self) -> Tensor | None:
        """(num_channels,) the sum over all ranks; None if no rank had a finite mini-batch."""
        gathered = torch.cat([self.sum, self.usable.double().reshape(1)])
        self.reduce(gathered)
        return gathered[:-1] if gathered[-1] else None

    def state_dict(self) -> dict[str, Any]:
        """Sum and count."""
        return {'sum': self.sum.cpu(), 'usable': self.usable.cpu()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        self.sum, self.usable = state['sum'].clone(), state['usable'].clone()


class Magnitude(Criterion):
    """L2 norm of all weights that make a channel or norm it."""

    def scores(self) -> Tensor:
        """(num_channels,) the norm."""
        squares = ((weight.square().reshape(len(weight), -1).sum(1), index) for weight, index in self.weights())
        return self.summed(squares).sqrt()


class NormScale(Criterion):
    """Sum of abs(gamma) over the norms of a channel (Liu et al., Network Slimming, ICCV 2017)."""

    def scores(self) -> Tensor:
        """(num_channels,) the sum."""
        modules = self.model.modules()
        gammas = {id(module.weight) for module in modules if isinstance(module, NORMS) and module.affine}
        return self.summed((weight.abs(), index) for weight, index in self.weights() if id(weight) in gammas)


class Random(Criterion):
    """The same random score for a channel all the time: the baseline that every criterion has to beat.

    Args:
        seed: Of the scores.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = checked('seed', seed, WHOLE)

    def scores(self) -> Tensor:
        """(num_channels,) uniform in [0, 1)."""
        return torch.rand(self.gates.graph.num_channels, generator=torch.Generator().manual_seed(self.seed))
