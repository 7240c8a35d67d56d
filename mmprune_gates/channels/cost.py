"""Multiply-accumulates as a function of the kept channels: one counter for loss, stop rule and report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmprune_gates.channels.index import Distinct, Vectors, product_at


@dataclass(frozen=True)
class Extent:
    """A width as a product.

    Attributes:
        rigid: The constant factor.
        factors: Numbers of the channel vectors whose counts multiply it.
    """

    rigid: float = 1
    factors: tuple[int, ...] = ()


class Widths:
    """Widths of many ops at once, from the number of channels kept in each channel vector.

    Args:
        extents: One per op.
    """

    def __init__(self, extents: Sequence[Extent]) -> None:
        rigid = [extent.rigid for extent in extents]
        self.rigid = torch.tensor(rigid, dtype=torch.double)
        nothing = torch.zeros(0, dtype=torch.long)  # so that there is something to pad where there are no ops
        factors = [nothing]
        for extent in extents:
            own = torch.tensor(extent.factors, dtype=torch.long)
            factors.append(own)
        padded = pad_sequence(factors, batch_first=True, padding_value=-1)
        self.factors = padded[1:]

    def __call__(self, counts: Tensor) -> Tensor:
        """(T,) width of each op, from (V,) counts of the channel vectors."""
        factors = product_at(counts, self.factors)
        return self.rigid.to(counts) * factors.prod(1)


@dataclass(frozen=True)
class Cost:
    """A sum over ops of positions times the kept channels of each factor (GDP: bilinear in the gates).

    Attributes:
        layers: Module path of each of the T ops.
        vectors: The channels of each factor.
        costs: Each op's cost as a product of counts.
    """

    layers: tuple[str, ...]
    vectors: Vectors
    costs: Widths

    @classmethod
    def of(cls, terms: Sequence[tuple[str, float, Sequence[Tensor]]]) -> Cost:
        """The cost of ops given as (module path, positions, channel vectors); equal vectors are counted once."""
        vectors = Distinct()
        layers = []
        extents = []
        for layer, positions, factors in terms:
            numbers = [vectors.number(factor) for factor in factors]
            extents.append(Extent(positions, tuple(numbers)))
            layers.append(layer)
        return cls(tuple(layers), Vectors(tuple(vectors.each)), Widths(extents))

    def per_op(self, value: Tensor) -> Tensor:
        """(T,) cost of each op when channel i counts by ``value[i]``; differentiable, linear in each channel."""
        return self.costs(self.vectors.counts(value))

    def per_layer(self, value: Tensor) -> dict[str, float]:
        """Module path -> cost of its ops when channel i counts by ``value[i]``."""
        costs: dict[str, float] = {}
        for layer, own in zip(self.layers, self.per_op(value).tolist(), strict=True):
            costs[layer] = costs.get(layer, 0.0) + own
        return costs

    def __call__(self, value: Tensor) -> Tensor:
        """Scalar cost; its gradient is the marginal cost of each channel, all others held fixed."""
        return self.per_op(value).sum()
