"""What a selection of channels costs. Selection itself knows no cost: it asks for a price, and what each channel adds.

A cost of one's own derives from :class:`Cost`, overrides :meth:`Cost.price`, and is registered in
``mmprune_gates.COSTS``. It need not be bilinear; where it is not differentiable it overrides :meth:`Cost.marginal` too.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from mmprune_gates.channels.cost import Cost as Products
from mmprune_gates.channels.graph import ChannelGraph
from mmprune_gates.gates.attach import NAME


class Cost:
    """Base of all costs.

    Attributes:
        graph: The channel graph.
        model: Its model, without gates in its weights.
        unit: Below it a channel's marginal cost counts as one unit when scores are divided by it.
        step: Widths of layers shrink to multiples of it: those between cost no less.
    """

    unit = 1.0
    step = 1
    graph: ChannelGraph
    model: nn.Module | None

    def bind(self, graph: ChannelGraph, model: nn.Module | None = None) -> Cost:
        """Get to know the channels to be priced; returns itself."""
        self.graph, self.model = graph, model
        return self

    def price(self, value: Tensor) -> Tensor:
        """Scalar cost.

        Args:
            value: (num_channels,) float64, how much each channel counts, from 0 (removed) to 1 (kept).
        """
        raise NotImplementedError

    def marginal(self, value: Tensor) -> Tensor:
        """(num_channels,) what each channel alone adds to the cost, all others held fixed."""
        with torch.enable_grad():
            value = value.detach().requires_grad_()
            return torch.autograd.grad(self.price(value), value)[0]


class MACs(Cost):
    """Multiply-accumulates of inference at batch 1 (GDP: bilinear in the gates)."""

    def price(self, value: Tensor) -> Tensor:
        """Scalar cost; a multiply-add is 1."""
        return self.graph.cost(value)


class Parameters(Cost):
    """Parameters of the model, norms and biases included."""

    def bind(self, graph: ChannelGraph, model: nn.Module | None = None) -> Cost:
        """Write the size of each parameter as a product of its extents.

        Raises:
            ValueError: No model is given.
        """
        if model is None:
            raise ValueError('Parameters needs the model, whose parameters it counts: bind(graph, model)')
        terms = []
        for name, parameter in model.named_parameters():
            if name.startswith(f'{NAME}.'):
                continue  # gates are folded in the end
            slots = graph.slots.get(name, {})
            rigid = [size for dim, size in enumerate(parameter.shape) if dim not in slots]
            holders = [torch.tensor([block.gate]) for block in graph.gated_blocks if block.holds(name)]
            extents = [*slots.values(), *holders]
            terms.append((name, float(prod(rigid)), extents))
        self.products = Products.of(terms)
        return super().bind(graph, model)

    def price(self, value: Tensor) -> Tensor:
        """Scalar cost: the number of parameters."""
        return self.products(value)
