"""Which tensors stay above zero whatever channels are closed: they can be divided by, and have a logarithm."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from mmprune_gates.channels.op import op_name
from mmprune_gates.checks import is_number

NEVER_NEGATIVE = frozenset('abs relu relu6 square sqrt std var exp sigmoid softplus linalg_vector_norm'.split())
# Results are positive, or never negative, if the first operand is.
REDUCED = 'sum mean amax amin avg_pool2d adaptive_avg_pool2d'
RESHAPED = 'expand expand_as view reshape unsqueeze squeeze flatten'
LIKE_OPERAND = frozenset(f'sqrt {REDUCED} {RESHAPED}'.split())


def is_positive(found: Any) -> bool:
    """Whether all elements are known to be positive: clamped above zero, or a positive number is added (an epsilon)."""
    if not isinstance(found, Node):
        return is_number(found) and found > 0
    name = op_name(found)
    if name in LIKE_OPERAND:
        return is_positive(found.args[0])
    if name == 'add' and not found.kwargs:
        terms = found.args[:2]
        return any(map(is_positive, terms)) and all(map(is_not_negative, terms))
    low = lower_bound(found)
    return is_number(low) and low > 0


def is_not_negative(found: Any) -> bool:
    """Whether no element is known to be negative."""
    if not isinstance(found, Node):
        return is_number(found) and found >= 0
    name = op_name(found)
    if name in NEVER_NEGATIVE:
        return True
    if name in LIKE_OPERAND:
        return is_not_negative(found.args[0])
    if name == 'pow' and found.args[1] == 2:
        return True
    low = lower_bound(found)
    return is_positive(found) or (is_number(low) and low >= 0)


def lower_bound(node: Node) -> Any:
    """The lower bound that a tensor is clamped to; None if there is none."""
    if op_name(node) not in ('clamp', 'clamp_min'):
        return None
    return node.args[1] if len(node.args) > 1 else node.kwargs.get('min')
