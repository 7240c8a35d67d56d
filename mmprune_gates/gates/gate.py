"""A gate: one factor per channel of a group; 1 leaves a channel as it is, exactly 0 closes it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Gate(nn.Module):
    """Base of all gates: the parameter ``theta`` is the gate.

    A custom gate derives from this class, overrides :meth:`value`, and is registered in ``mmprune_gates.MODELS``. Its
    value must be 1 at ``theta`` = 1 and exactly 0 at ``theta`` = 0. All modules that it acts on share its values.

    Args:
        size: Number of channels of the group.

    Attributes:
        per_module: Whether each module that the gate acts on has values of its own.
    """

    per_module = False

    def __init__(self, size: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones(size))
        self.straight_through = False

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Refuse weights of a model that channels have left: tools that skip what does not fit would go on without.

        Raises:
            ValueError: The gate in the checkpoint has another number of channels.
        """
        theta = state_dict.get(f'{prefix}theta')
        if theta is not None and theta.shape[-1:] != self.theta.shape[-1:]:
            raise ValueError(
                f'the gate {prefix}theta has {theta.shape[-1]} channels in the checkpoint and {self.theta.shape[-1]} '
                'in this model: it is another model, or channels have left it in training. tools/slim.py and '
                'tools/test.py open such a checkpoint with the config of its run; stock tools open what slim.py writes'
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def set_members(self, number: int) -> None:
        """Tell the gate on how many modules it acts, before it is used; here all share its values."""

    def value(self, theta: Tensor) -> Tensor:
        """(C,) gate values from (C,) parameters."""
        return theta

    def forward(self, member: int = 0) -> Tensor:
        """(C,) gate values for module number ``member``; here the same for all.

        With ``straight_through``, ``theta`` receives the gradient with respect to the gate's value, which a hook that
        moves ``theta`` itself needs for its scores.
        """
        if not self.straight_through:
            return self.value(self.theta)
        theta = self.theta.detach()
        return self.value(theta) + (self.theta - theta)  # adds exactly 0, with a gradient of 1

    def strength(self) -> Tensor:
        """(C,) strength of the gate on each channel: 0 only where it is closed for all modules."""
        return self.value(self.theta)

    def importance(self, grad: Tensor) -> Tensor:
        """(C,) Taylor importance from the gradient of one mini-batch's loss with respect to ``theta``.

        Raises:
            NotImplementedError: This type of gate has none.
        """
        raise NotImplementedError(
            f'{type(self).__name__} has no Taylor importance: use DecoratorGate, or a criterion other than Taylor'
        )

    def extra_repr(self) -> str:
        """Size of the group."""
        return f'size={self.theta.shape[-1]}'


def laid(value: Tensor, dim: int, rank: int) -> Tensor:
    """A vector laid along dimension ``dim`` of a tensor of rank ``rank``."""
    return value.reshape([-1 if d == dim % rank else 1 for d in range(rank)])
