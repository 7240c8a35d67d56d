"""The cost of a selection of channels. Selection knows no particular cost: it asks for prices and marginal costs.

A custom cost derives from :class:`Cost`, overrides :meth:`Cost.price`, and is registered in ``mmprune_gates.COSTS``. It
need not be bilinear; a cost that is not differentiable also overrides :meth:`Cost.marginal`.
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
        model: Its model; gates are not folded into the weights.
        unit: Least marginal cost of a channel when scores are divided by marginal costs; smaller ones count as this.
        step: Layer widths shrink to multiples of it; widths in between cost no less.
    """

    unit = 1.0
    step = 1
    graph: ChannelGraph
    model: nn.Module | None

    def bind(self, graph: ChannelGraph, model: nn.Module | None = None) -> Cost:
        """Bind the cost to the graph whose channels it prices; returns itself."""
        self.graph, self.model = graph, model
        return self

    def narrow(self, graph: ChannelGraph) -> None:
        """Bind the cost to what is left of its graph after channels have gone; what a channel costs stays the same."""
        self.bind(graph, self.model)

    def price(self, value: Tensor) -> Tensor:
        """Scalar cost.

        Args:
            value: (num_channels,) float64, how much each channel counts, from 0 (removed) to 1 (kept).
        """
        raise NotImplementedError

    def marginal(self, value: Tensor) -> Tensor:
        """(num_channels,) cost that each channel alone adds, all others held fixed."""
        with torch.enable_grad():
            value = value.detach().requires_grad_()
            return torch.autograd.grad(self.price(value), value)[0]


class MACs(Cost):
    """Multiply-accumulates of inference at batch 1 (GDP: bilinear in the gates)."""

    def price(self, value: Tensor) -> Tensor:
        """Scalar cost; a multiply-add is 1."""
        return self.graph.cost(value)


class Parameters(Cost):
    """Number of parameters of the model, norms and biases included."""

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
