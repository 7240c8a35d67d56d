"""What every way of closing gates shares: gates, a MACs target, limits, and figures of how far it has come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmprune_gates.budget.selection import Candidates, Limits
from mmprune_gates.gates import GateSet, listed


def checked_target(target: float) -> float:
    """A target, if it is one.

    Raises:
        ValueError: It is not a share of MACs in (0, 1].
    """
    if not 0 < target <= 1:
        raise ValueError(f'target_macs is the share of MACs to keep, in (0, 1]; got {target}')
    return target


class Pruner:
    """Closes gates of a model until a MACs target is met.

    Args:
        gates: The gates.
        target: Kept MACs / original MACs.
        limits: What must stay.

    Attributes:
        kept: (num_channels,) bool, True = keep; None as long as nothing is closed for good.
        settled: Whether nothing will close any more.

    Raises:
        ValueError: The target is out of range, or out of reach under the limits.
    """

    kept: Tensor | None
    settled: bool

    def __init__(self, gates: GateSet, target: float, limits: Limits) -> None:
        self.gates, self.target = gates, checked_target(target)
        self.candidates = Candidates.of(gates.graph, limits)
        self.total = gates.graph.macs()
        everything = torch.zeros(gates.graph.num_channels)
        self.candidates.select(everything, target)  # raises here, not hours later, if out of reach

    def check(self) -> None:
        """Ask whether what is closed for good is what is closed, and respects the limits.

        Raises:
            RuntimeError: It is not, or does not.
        """
        if self.kept is None:
            return
        self.candidates.check(self.kept)
        free = self.gates.graph.by_group(self.kept)
        if changed := [name for name, own in self.gates.kept().items() if not torch.equal(own, free[name])]:
            raise RuntimeError(
                f'the gates of {listed(changed)} are not those that were chosen: something else moves them'
            )

    def state_dict(self) -> dict[str, Any]:
        """State to resume from; tensors and plain values only."""
        kept = None if self.kept is None else self.kept.clone()
        return {'target': self.target, 'settled': self.settled, 'kept': kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        self.kept = None if state['kept'] is None else state['kept'].clone()

    def figures(self, value: Tensor) -> dict[str, float]:
        """Figures to log: share of MACs, and share of gates closed.

        Args:
            value: (num_channels,) how much each channel counts, in [0, 1].
        """
        free = torch.cat([value[group.span] for group in self.gates.graph.free])
        return {
            'macs_ratio': float(self.gates.graph.cost(value.double())) / self.total,
            'gates_closed': float((free == 0).float().mean()),
        }

    def summary(self) -> str:
        """What the gates have become, in words."""
        kept = self.gates.kept()
        open_, all_ = sum(int(mask.sum()) for mask in kept.values()), sum(len(mask) for mask in kept.values())
        macs = self.gates.graph.macs(kept)
        return (
            f'{open_} of {all_} channels open, {macs / 1e9:.3f} of {self.total / 1e9:.3f} GMACs '
            f'({macs / self.total:.4f}, target {self.target})'
        )
