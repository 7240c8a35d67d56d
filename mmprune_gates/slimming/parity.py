"""Parity of a slim model with its original, compared in float64, where rounding does not decide, if the code can."""

from __future__ import annotations

import copy
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from mmprune_gates.channels.calls import Forward, Options, run, same_draws

TOLERANCE = 1e-5
IN_OWN_PRECISION = 1e-3  # of models whose code fixes a precision


@torch.no_grad()
def exact_outputs(model: nn.Module, forward: Forward | None, options: Options) -> list[Tensor]:
    """All outputs of a model in float64 and evaluation mode; neither the model nor its inputs change.

    A model whose code fixes a precision, so that it fails in float64, runs in its own. Random draws are the same every
    time, and leave the random state outside as it was.
    """

    def double(leaf: Tensor) -> Tensor:
        return leaf.to(torch.double, copy=True) if leaf.is_floating_point() else leaf.clone()

    def evaluated(copied: nn.Module, inputs: Options) -> list[Tensor]:
        copied.eval()  # eval() of some models does not return the model
        with same_draws(copied):
            return run(copied, forward, inputs)

    deterministic = torch.backends.cudnn.deterministic
    # On a GPU: no search for the fastest of kernels that run a few times, and no products in TF32.
    with torch.backends.cudnn.flags(benchmark=False, allow_tf32=False, deterministic=deterministic):
        with suppress(RuntimeError):
            return evaluated(copy.deepcopy(model).double(), tree_map_only(Tensor, double, options))
        return evaluated(copy.deepcopy(model), tree_map_only(Tensor, Tensor.clone, options))


def tolerance(outputs: list[Tensor]) -> float:
    """The largest relative error of two equal models with such outputs."""
    return TOLERANCE if any(output.dtype == torch.double for output in outputs) else IN_OWN_PRECISION


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
