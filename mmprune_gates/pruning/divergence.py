"""Detects diverged training: checked now and then, and before anything is settled or saved."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmprune_gates.checks import listed


class Diverged(RuntimeError):
    """The model has parameters or statistics that are not finite: it cannot recover, nor guide any choice."""


class Divergence:
    """Records when gradients stop being finite, and checks whether parameters and buffers are finite.

    A mini-batch without finite gradients alone is no divergence: mixed precision skips its step.

    Args:
        model: The model, without a distributed wrapper.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.first: Tensor | None = None  # step of the first non-finite gradient since all was finite
        self.statistics = {name for name, buffer in model.named_buffers() if buffer.isfinite().all()}  # no masks

    def note(self, finite: Tensor, step: int) -> None:
        """Record whether the gradients of one step are finite, a scalar bool, without waiting for a GPU."""
        never = torch.full((), torch.inf, dtype=torch.double, device=finite.device)
        now = torch.where(finite, never, step)
        self.first = now if self.first is None else torch.minimum(self.first.to(now.device), now)

    def check(self, step: int) -> None:
        """Check that all parameters are finite, and all buffers that were at first.

        Args:
            step: Number of steps done.

        Raises:
            Diverged: They are not; names the step and the tensors.
        """
        named: dict[str, Tensor] = dict(self.model.named_parameters())
        named |= {name: buffer for name, buffer in self.model.named_buffers() if name in self.statistics}
        finite = torch.stack([tensor.detach().isfinite().all() for tensor in named.values()])
        lost = [name for name, is_finite in zip(named, finite.tolist(), strict=True) if not is_finite]
        if not lost:
            self.first = None
            return
        begin = '' if self.first is None or self.first.isinf() else f', from step {int(self.first) + 1} on'
        raise Diverged(
            f'training has diverged: at step {step} {len(lost)} of {len(named)} parameters and buffers are not finite '
            f'({listed(lost)}){begin}. Nothing was saved since; lower the learning rate, clip gradients, or check the '
            'data and the weights that training began with'
        )
