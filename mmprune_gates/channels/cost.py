"""Multiply-accumulates as a function of the kept channels: one counter for loss, stop rule and report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmprune_gates.channels.index import Vectors, at


@dataclass(frozen=True)
class Cost:
    """A sum over ops of positions times the kept channels of each factor (GDP: bilinear in the gates).

    Attributes:
        layers: Module path of each of the T ops.
        positions: (T,) float64, product of the extents that hold no channel, per sample.
        vectors: The channels of each factor.
        factors: (T, F) numbers of the vectors that are factors of each op, -1 for a factor of one.
    """

    layers: tuple[str, ...]
    positions: Tensor
    vectors: Vectors
    factors: Tensor

    @classmethod
    def of(cls, terms: Sequence[tuple[str, float, Sequence[Tensor]]]) -> Cost:
        """The cost of ops given as (module path, positions, channel vectors)."""
        vectors: list[Tensor] = []
        rows = [torch.zeros(0, dtype=torch.long)]  # for pad_sequence, which wants at least one
        for _, _, factors in terms:
            first = len(vectors)
            vectors += factors
            rows.append(torch.arange(first, len(vectors)))
        layers = [layer for layer, _, _ in terms]
        positions = [positions for _, positions, _ in terms]
        return cls(
            layers=tuple(layers),
            positions=torch.tensor(positions, dtype=torch.double),
            vectors=Vectors(tuple(vectors)),
            factors=pad_sequence(rows, batch_first=True, padding_value=-1)[1:],
        )

    def per_op(self, value: Tensor) -> Tensor:
        """(T,) cost of each op when channel i counts by ``value[i]``; differentiable, linear in each channel."""
        counts = self.vectors.counts(value)
        factors = at(counts, self.factors)
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
