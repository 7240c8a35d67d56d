"""Attributes that follow when heads go: the usual names of each kind, in any class.

A name alone changes nothing: an attribute follows only if its value is the number of heads, or of channels in them,
that its own module's code views, and if the module then computes what it should (``heads.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mmprune_gates.gates.stand_in import show_width, shown_width

COUNTS = tuple(
    'num_heads heads n_heads nhead n_head num_attention_heads num_q_heads '
    'num_kv_heads num_key_value_heads kv_heads n_kv_heads num_groups'.split()
)
SIZES = tuple('head_dims head_dim head_embed_dims head_size dim_head attention_head_size d_head d_k'.split())
INNER = tuple(
    'embed_dims embed_dim inner_dim inner_dims inner_dimension all_head_size attn_dim attention_dim hidden_dim '
    'hidden_size d_model dim dims channels'.split()
)
SHOWN_WIDTH = 'shown_width'  # in a table of widths: that of the stand-in for a module's input


def whole_attributes(module: nn.Module, names: Sequence[str]) -> dict[str, int]:
    """The named attributes of a module that are whole numbers, with their values."""
    found = {}
    for name in names:
        value = vars(module).get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            found[name] = value
    return found


def set_following(module: nn.Module, name: str, value: int) -> bool:
    """Set an attribute that follows heads; returns whether anything has changed."""
    if name == SHOWN_WIDTH:
        changed = shown_width(module) != value
        show_width(module, value)
        return changed
    changed = getattr(module, name) != value
    setattr(module, name, value)
    return changed


def split_following(module: nn.Module, attributes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a module's entry in a table of widths: attributes that follow heads, and the others."""
    known = (*COUNTS, *SIZES, *INNER)
    names = {*whole_attributes(module, known), SHOWN_WIDTH}
    following: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for name, value in attributes.items():
        part = following if name in names else others
        part[name] = value
    return following, others
