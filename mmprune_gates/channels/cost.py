"""Multiply-accumulates as a function of the kept channels: one counter for loss, stop rule and report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmprune_gates.channels.index import at


@dataclass(frozen=True)
class Cost:
    """A sum over ops of positions times the kept channels of each factor (GDP: bilinear in the gates).

    Attributes:
        layers: Module path of each of the T ops.
        positions: (T,) float64, product of the extents that hold no channel, per sample.
        index: (K,) channels of all factors, concatenated; -1 for a position that always stays.
        owner: (K,) the factor that each position belongs to.
        factors: (T, F) the factors of each op, -1 for a factor of one.
        count: Number of factors.
    """

    layers: tuple[str, ...]
    positions: Tensor
    index: Tensor
    owner: Tensor
    factors: Tensor
    count: int

    @classmethod
    def of(cls, terms: Sequence[tuple[str, float, Sequence[Tensor]]]) -> Cost:
        """The cost of ops given as (module path, positions, channel vectors)."""
        vectors: list[Tensor] = []
        rows = []
        for _, _, factors in terms:
            first = len(vectors)
            vectors += factors
            rows.append(torch.arange(first, len(vectors)))
        count = len(vectors)
        sizes = torch.tensor([len(vector) for vector in vectors], dtype=torch.long)
        nothing = torch.zeros(0, dtype=torch.long)
        return cls(
            layers=tuple(layer for layer, _, _ in terms),
            positions=torch.tensor([positions for _, positions, _ in terms], dtype=torch.double),
            index=torch.cat([nothing, *vectors]),
            owner=torch.repeat_interleave(torch.arange(count), sizes),
            factors=pad_sequence([nothing, *rows], batch_first=True, padding_value=-1)[1:],
            count=count,
        )

    def per_op(self, value: Tensor) -> Tensor:
        """(T,) cost of each op when channel i counts by ``value[i]``; linear in each factor, differentiable."""
        owner = self.owner.to(value.device)
        nothing = value.new_zeros(self.count)
        sums = nothing.index_add(0, owner, at(value, self.index))
        factors = at(sums, self.factors)
        return self.positions.to(value) * factors.prod(1)

    def per_layer(self, value: Tensor) -> dict[str, float]:
        """Module path -> cost of its ops when channel i counts by ``value[i]``."""
        costs: dict[str, float] = {}
        for layer, own in zip(self.layers, self.per_op(value).tolist(), strict=True):
            costs[layer] = costs.get(layer, 0.0) + own
        return costs

    def __call__(self, value: Tensor) -> Tensor:
        """Scalar cost; its gradient is the marginal cost of each channel, all others held fixed."""
        return self.per_op(value).sum()
