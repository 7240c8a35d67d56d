"""Parity of a slim model with its original, compared in float64, where rounding does not decide."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from mmprune_gates.channels.calls import Forward, Options, run, same_draws

TOLERANCE = 1e-5


@torch.no_grad()
def exact_outputs(model: nn.Module, forward: Forward | None, options: Options) -> list[Tensor]:
    """All outputs of a model in float64 and evaluation mode; the model does not change.

    Random draws are the same every time, and leave the random state outside as it was.
    """

    def double(leaf: Tensor) -> Tensor:
        return leaf.double() if leaf.is_floating_point() else leaf

    model = copy.deepcopy(model).double()
    model.eval()
    with same_draws(model):
        return run(model, forward, tree_map_only(Tensor, double, options))


def relative_error(expected: list[Tensor], found: list[Tensor]) -> float:
    """Largest error of any output: absolute difference relative to its largest expected value; NaN if one is NaN."""
    errors = [torch.zeros((), dtype=torch.double)]
    for own, other in zip(expected, found, strict=True):
        if own.numel() == 0 == other.numel():
            continue
        if not own.is_floating_point() and not own.is_complex():
            own, other = own.double(), other.double()  # labels, masks
        largest = own.abs().max().clamp_min(1e-12)
        difference = (own - other).abs().max()
        error = difference / largest
        errors.append(error.double().cpu())
    return float(torch.stack(errors).max())
