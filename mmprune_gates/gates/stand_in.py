"""A stand-in for the input of a module whose code takes the width of its inner channels from the shape of its input.

Attention often reads ``B, N, C = x.shape`` and views what its layers have made as C channels. Where those become fewer,
the module is called with a tensor of their width in place of its input, and the layers in it that are called with that
tensor get the input itself. The stand-in takes no memory; code that uses it in any other way finds NaN.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

WIDTH = 'mmprune_gates_shown_width'  # attribute of the module
GIVEN = 'mmprune_gates_given'  # attribute of a stand-in: what it stands for


def show_width(module: Any, width: int) -> None:
    """Call a module from now on with a stand-in of that width in place of its first argument, (..., C).

    Args:
        module: The module; layers in it are called with its first argument as their first one.
        width: Size of the last dimension of the stand-in.
    """
    if shown_width(module) is None:
        module.register_forward_pre_hook(_show)
        for layer in module.modules():
            if layer is not module:
                layer.register_forward_pre_hook(_hand_over, prepend=True)
    setattr(module, WIDTH, width)


def shown_width(module: nn.Module) -> int | None:
    """Width of the stand-in that a module is called with; None if there is none."""
    return getattr(module, WIDTH, None)


def given(args: tuple) -> tuple:
    """Arguments of a layer with the input in place of the stand-in for it."""
    if not args:
        return args
    first, *rest = args
    return (getattr(first, GIVEN, first), *rest)


def _show(module: nn.Module, args: tuple) -> tuple:
    """Forward pre-hook: the stand-in in place of the input."""
    x: Tensor
    x, *rest = args
    zero = x.new_zeros(1)
    nan = zero / zero  # without a number in the code, of which a rehearsal takes note
    shown: Any = nan.expand(*x.shape[:-1], getattr(module, WIDTH))
    setattr(shown, GIVEN, x)
    return (shown, *rest)


def _hand_over(layer: nn.Module, args: tuple) -> tuple:
    """Forward pre-hook of a layer: the input in place of the stand-in for it."""
    return given(args)
