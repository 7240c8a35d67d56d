"""The gate of GDP: a differentiable, polarising stand-in for the L0 norm.

Guo et al., GDP: Stabilized Neural Network Pruning via Gates with Differentiable Polarization, ICCV 2021,
arXiv 2109.02220.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmprune_gates.checks import POSITIVE, checked
from mmprune_gates.gates.gate import Gate


def polarize(theta: Tensor, eps: Tensor | float) -> Tensor:
    """(C,) gate values ``(1 + eps) * theta**2 / (theta**2 + eps)``.

    The smaller ``eps``, the closer the values are to {0, 1} for any ``theta`` but 0. Differs from the paper:
    the factor (1 + eps) makes ``theta`` = 1 exactly 1 for every ``eps``, so that inserting a gate, or annealing
    ``eps``, does not move an open one.
    """
    square = theta.square()
    return (1 + eps) * square / (square + eps)


class PolarizationGate(Gate):
    """GDP's gate with ``eps`` in a buffer, so that it is saved, resumed and annealed.

    Args:
        size: Number of channels of the group.
        eps: Initial smoothness; the form is the paper's, the value this project's choice.
    """

    eps: Tensor

    def __init__(self, size: int, eps: float = 0.1) -> None:
        super().__init__(size)
        checked('PolarizationGate: eps', eps, POSITIVE)
        self.register_buffer('eps', torch.tensor(float(eps)))

    def value(self, theta: Tensor) -> Tensor:
        """(C,) gate values from (C,) parameters."""
        return polarize(theta, self.eps)
