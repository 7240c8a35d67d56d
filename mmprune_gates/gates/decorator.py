"""The gate of Gate Decorator: a plain factor per channel and module, scored by the Taylor expansion of the loss.

You et al., Gate Decorator: Global Filter Pruning Method for Accelerating Deep Convolutional Neural Networks,
NeurIPS 2019, arXiv 1909.08174. On a batch norm it makes the paper's gated batch norm (GBN), on a layer without a norm
its gated convolution; the modules that one gate acts on are the members of the paper's virtual GBN.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmprune_gates.channels.index import at, unpaired
from mmprune_gates.gates.attach import GateSet
from mmprune_gates.gates.gate import Gate
from mmprune_gates.gates.placement import AFFINE
from mmprune_gates.gates.scale import Scale


class DecoratorGate(Gate):
    """Gate Decorator's gate: ``theta`` is the paper's phi, one row per module that the gate acts on.

    Args:
        size: Number of channels of the group.
    """

    per_module = True

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.set_members(1)

    def set_members(self, number: int) -> None:
        """Set ``theta`` to ones, with one row per module."""
        self.theta = nn.Parameter(torch.ones(number, self.theta.shape[-1]))

    def forward(self, member: int = 0) -> Tensor:
        """(C,) factors for module number ``member``."""
        return self.theta[member]

    def strength(self) -> Tensor:
        """(C,) largest magnitude over the members."""
        return self.theta.abs().amax(0)

    def importance(self, grad: Tensor) -> Tensor:
        """(C,) |phi * dL/dphi|, summed over the members (paper, equations 6 to 8).

        Args:
            grad: (M, C) gradient of one mini-batch's loss.
        """
        return (self.theta.detach() * grad).abs().sum(0)


def gated_norms(gates: GateSet) -> list[Scale]:
    """The scales of all norms that gates act on."""
    affine = [scale for scale in gates.scales if scale.placement.kind == AFFINE]
    return [scale for scale in affine if scale.placement.parameter == 'weight' and scale.module.weight.dim() == 1]


@torch.no_grad()
def take_over_affine(gates: GateSet) -> None:
    """Move the magnitude of each gated norm's affine into its gates; the model's function stays the same.

    Differs from the paper, where phi takes over gamma and the shift becomes beta / gamma, which must be clamped
    where gamma is small: here phi takes over the norm of (gamma, beta), so that nothing is divided by something
    smaller than itself. Without a shift that is the paper's |gamma|. A channel that is zero is left as it is.
    """
    for scale in gated_norms(gates):
        weight, bias = scale.module.weight, scale.module.bias
        size = weight.abs() if bias is None else torch.hypot(weight, bias)
        of_channel = size.new_zeros(gates.graph.num_channels + 1)  # last: positions without a gate
        index = scale.placement.index.to(size.device)
        first, _ = unpaired(index)
        # A channel may stand at several positions: the largest decides.
        of_channel.scatter_reduce_(0, first % len(of_channel), size, 'amax')  # unlike index_reduce_, repeatable on GPUs
        of_channel[of_channel == 0] = 1
        for group, gate, number in scale.sources:
            gate.theta[number].mul_(of_channel[group.span])
        factor = at(of_channel[:-1], index)
        weight.div_(factor)
        if bias is not None:
            bias.div_(factor)
