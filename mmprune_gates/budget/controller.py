"""The base of all ways to close gates: gates, target, limits, cost, the choice of channels, and figures to log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmprune_gates.budget.costs import Cost, MACs
from mmprune_gates.budget.criteria import Criterion
from mmprune_gates.budget.selection import Candidates, Limits
from mmprune_gates.channels.kept import Kept
from mmprune_gates.checks import SHARE, checked, listed
from mmprune_gates.gates import GateSet

MARGIN = 1e-6  # by which a corrected target exceeds what the limits leave: scores change the order of a sum


class Controller:
    """Closes gates of a model until its cost meets a target.

    Args:
        gates: The gates.
        target: Cost of the kept channels / cost of the whole model.
        limits: Limits on what may close.
        cost: The cost, bound to the graph; multiply-accumulates by default.
        criterion: The criterion, bound to the gates; None where the gates' own values decide.

    Attributes:
        kept: The channels that are not closed for good; None as long as nothing is.
        correction: Factor of the target, see :meth:`correct`.

    Raises:
        ValueError: The target is out of range, or out of reach under the limits.
    """

    kept: Kept | None = None
    correction: float = 1.0

    def __init__(
        self,
        gates: GateSet,
        target: float,
        limits: Limits,
        cost: Cost | None = None,
        criterion: Criterion | None = None,
    ) -> None:
        self.gates, self.target = gates, checked('target', target, SHARE)
        self.candidates = Candidates.of(gates.graph, limits, cost)
        self.criterion = criterion
        self.whole_macs = gates.whole.macs()
        everything = torch.zeros(gates.graph.num_channels)
        self.candidates.select(everything, target)  # raises here, not hours later, if out of reach

    @property
    def settled(self) -> bool:
        """Whether no further gate will close."""
        return self.kept is not None

    @property
    def aim(self) -> float:
        """The corrected target."""
        return self.corrected(self.target)

    def corrected(self, share: float) -> float:
        """A share of the cost, corrected."""
        return min(1.0, share * self.correction)

    def correct(self, factor: float) -> None:
        """Aim at the target times a factor from now on, or at the least that the limits leave.

        Args:
            factor: Cost of the candidate / cost that it was measured to have.
        """
        least = (1 + MARGIN) * self.candidates.least_share()
        self.correction = max(factor, least / self.target)

    def candidate(self) -> Kept:
        """What would be kept if the choice had to be made now."""
        return self.open()

    def staying(self) -> Kept:
        """The channels that stay if all that may leave the model now do; those inside removed blocks leave with them.

        While more gates may close, nothing leaves if a block is emptied: the constant left in its place could not be
        narrowed together with its consumers.
        """
        graph, kept = self.gates.graph, self.open()
        if kept.emptied and not self.settled:
            return graph.kept()
        return graph.without_inner(kept)

    def open(self) -> Kept:
        """The channels that are not closed for good: all of them until a choice is made."""
        return self.gates.graph.kept() if self.kept is None else self.kept

    def choose(self, score: Tensor) -> Kept:
        """Choose the kept channels for good, meeting the target as closely as the limits allow.

        Args:
            score: (num_channels,) scores, higher = keep.
        """
        self.kept = kept = self.candidates.choose(score, self.aim)
        return kept

    def hold(self) -> None:
        """Reset the gates closed for good to exactly 0, whatever an optimiser did to them."""
        if self.kept is not None:
            self.gates.close(self.kept)

    def narrow(self, gates: GateSet, kept: Kept) -> None:
        """Continue with the gates that remain after channels were removed.

        Args:
            gates: The remaining gates.
            kept: The channels that were kept, in the graph before the removal.
        """
        self.gates, before = gates, self.candidates
        self.candidates = before.narrowed(gates.graph)
        if self.criterion is not None:
            self.criterion.narrow(gates, kept)
        if self.kept is not None:
            self.kept = gates.graph.keeping(self.kept.vector[kept.staying])
        if self.correction != 1:
            self.correct(self.correction)  # what has left the model limits what can close

    def check(self) -> None:
        """Check that exactly the channels closed for good are closed, and that the limits hold.

        Raises:
            RuntimeError: Other channels are closed, or a limit is violated.
        """
        if self.kept is None:
            return
        self.candidates.check(self.kept)
        open_now = self.gates.kept()
        changed = [name for name, chosen in self.kept.items() if not torch.equal(chosen, open_now[name])]
        if changed:
            raise RuntimeError(
                f'the gates of {listed(changed)} are not those that were chosen: something else moves them'
            )

    def state_dict(self) -> dict[str, Any]:
        """State to resume from; tensors and plain values only."""
        return {
            'target': self.target,
            'correction': self.correction,
            'whole_cost': self.candidates.total,
            'settled': self.settled,
            'kept': None if self.kept is None else self.kept.vector.clone(),
            'criterion': {} if self.criterion is None else self.criterion.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state.

        Raises:
            ValueError: The state belongs to other gates.
        """
        kept, channels = state['kept'], self.gates.graph.num_channels
        if kept is not None and kept.shape != (channels,):
            raise ValueError(f'what it keeps has shape {tuple(kept.shape)}, the model has {channels} channels')
        self.kept = None if kept is None else self.gates.graph.keeping(kept)
        if state.get('whole_cost') == self.candidates.total:  # else another cost, or a table that was measured again
            self.correction = float(state['correction'])
        if self.criterion is not None:
            self.criterion.load_state_dict(state['criterion'])

    def scalars(self) -> dict[str, float]:
        """Figures to log in every iteration; those of :meth:`figures`, with gate values as what each channel counts."""
        return self.figures(self.gates.vector().clamp(0, 1))

    def figures(self, value: Tensor) -> dict[str, float]:
        """Figures to log: share of MACs, share of the cost if that is not MACs, and share of gates closed.

        Args:
            value: (num_channels,) how much each channel counts, in [0, 1].
        """
        graph, cost = self.gates.graph, self.candidates.cost
        value = value.detach().cpu().double()
        macs = float(graph.cost(value))
        found = {'macs_ratio': macs / self.whole_macs}
        if not isinstance(cost, MACs):
            price = float(cost.price(value))
            found['cost_ratio'] = price / self.candidates.total
        free = torch.cat([value[:0], *(value[group.span] for group in graph.free)])
        still_open = int(free.count_nonzero())
        total = sum(group.size for group in self.gates.whole.free)  # channels that have left the model were closed
        found['gates_closed'] = 1 - still_open / total
        return found

    def summary(self) -> str:
        """Open channels, MACs, and the share of the cost with its target, in words."""
        now, whole = self.gates.kept(), self.gates.whole
        kept = self.gates.kept_of_whole(now)
        masks = torch.cat(list(kept.values()))
        macs = whole.macs(kept)
        name = type(self.candidates.cost).__name__
        share = self.candidates.share(now)
        return (
            f'{int(masks.sum())} of {len(masks)} channels open, {macs / 1e9:.3f} of {self.whole_macs / 1e9:.3f} GMACs '
            f'({share:.4f} of the {name}, target {self.target:.4g})'
        )
