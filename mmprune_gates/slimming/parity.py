"""Parity of a slim model with its original, compared in float64, where rounding does not decide, if the code can."""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from mmprune_gates.channels.calls import Forward, Options, run, same_draws

TOLERANCE = 1e-5
IN_OWN_PRECISION = 1e-3  # of models whose code fixes a precision


@torch.no_grad()
def exact_outputs(model: nn.Module, forward: Forward | None, options: Options) -> list[Tensor]:
    """All outputs of a model in float64 and evaluation mode; neither the model nor its inputs change.

    A model whose code fixes a precision, so that it fails in float64, runs in its own. Random draws are the same every
    time, and leave the random state outside as it was. Compiled parts run as they are written: code that was compiled
    before gates came, or channels left, would go on without these.
    """

    def double(leaf: Tensor) -> Tensor:
        return leaf.to(torch.double, copy=True) if leaf.is_floating_point() else leaf.clone()

    def evaluated(copied: nn.Module, inputs: Options) -> list[Tensor]:
        copied.eval()  # eval() of some models does not return the model
        with same_draws(copied):
            return run(copied, forward, inputs)

    deterministic = torch.backends.cudnn.deterministic
    # On a GPU: no search for the fastest of kernels that run a few times, and no products in TF32.
    exactly = torch.backends.cudnn.flags(benchmark=False, allow_tf32=False, deterministic=deterministic)
    with exactly, torch.compiler.set_stance('force_eager'):
        with suppress(RuntimeError):
            return evaluated(copied(model).double(), tree_map_only(Tensor, double, options))
        return evaluated(copied(model), tree_map_only(Tensor, Tensor.clone, options))


def copied(model: nn.Module) -> nn.Module:
    """A deep copy of a model, detached from the activations that its modules hold, such as features for a loss."""
    detached: dict[int, Any] = {}
    for module in model.modules():
        for leaf in tree_leaves(vars(module)):
            if isinstance(leaf, Tensor) and not leaf.is_leaf:
                detached[id(leaf)] = leaf.detach()
    return copy.deepcopy(model, detached)


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
