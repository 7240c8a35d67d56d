"""What stands where a residual block was: nothing that computes, and a zero of the right shape."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Removed(nn.Module):
    """In the place of a module of a removed block: zeros of its input's shape, whatever else it is given."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(N, C, ...) -> zeros of the same shape."""
        return torch.zeros_like(x)


def remove_modules(model: nn.Module, paths: Iterable[str]) -> None:
    """Put nothing in the place of modules.

    Raises:
        ValueError: A path that the model does not have.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for path in paths:
        if path not in modules:
            raise ValueError(
                f'removed names the module {path!r}, which {type(model).__name__} does not have: the slim config '
                'belongs to another architecture, or its keys were changed after slimming'
            )
        model.set_submodule(path, Removed())
