"""Heads: which views cut channels into heads, and which attributes of modules count them.

A view from C to (h, d) can shrink along h or along d. If products are independent of each other along one of them, as
in attention, that one counts heads: a head goes as a whole, and everything that depends on d stays the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.fx import Node

from mmprune_gates.channels.flow import DIMS, HEADS, Flow, Scout
from mmprune_gates.channels.labels import Ids

BOTH = 'both'  # heads, and channels of heads


@dataclass(frozen=True, eq=False)
class Seen:
    """Channels, some of them heads, that a module's code views in another shape.

    Attributes:
        module: Path of the module.
        index: (C,) channel at each position, -1 for none.
    """

    module: str
    index: Tensor


@dataclass(frozen=True, eq=False)
class Follow:
    """A module attribute that holds a number of channels; slimming sets it to the number kept.

    Attributes:
        module: Path of the module.
        attribute: Name of the attribute.
        index: (C,) the channels it counts, -1 for none.
    """

    module: str
    attribute: str
    index: Tensor


def heads_of(flow: Flow, scout: Scout, attention: str = HEADS) -> dict[Node, dict[str, int]]:
    """Views that cut channels into heads -> what goes along dimensions of their result -> that dimension.

    If another view cuts a piece further, the first view shrinks along that piece. Where nothing counts heads, as in
    attention with a single head, the channels that products sum over can go.

    Args:
        flow: Findings of a walk that cuts channels along all dimensions at once.
        scout: The scout of that walk.
        attention: What goes: whole ``heads``, ``dims``, the same channels of every head, or ``both``.
    """
    classes = flow.classes()
    heads = _cuts_along(scout.batches, classes, scout)
    ways = {}
    if attention != DIMS:
        ways[HEADS] = _cuts_along(scout.summed, classes, scout) | heads
    if attention != HEADS:
        beside = _beside(heads, classes, scout)
        ways[DIMS] = heads | _cuts_along([*scout.summed, *beside], classes, scout)
    found: dict[Node, dict[str, int]] = defaultdict(dict)
    for kind, views in ways.items():
        for view, dim in views.items():
            found[view][kind] = dim
    return dict(found)


def tie_cuts(flow: Flow) -> None:
    """Unite equally many channels of the heads of a module: q, k and v lose the same, since one number counts them."""
    first: dict[tuple[str, int], Ids] = {}
    for cut in flow.cuts:
        if cut.kind == DIMS:
            place = (cut.layer, len(cut.ids))
            known = first.setdefault(place, cut.ids)
            flow.unite(known, cut.ids)


def _beside(heads: Mapping[Node, int], classes: Ids, scout: Scout) -> list[Ids]:
    """Ids along the last other dimension of the views that cut heads and are not cut further."""
    is_cut = np.zeros(len(classes), bool)  # by class
    for piece in scout.pieces:
        is_cut[classes[piece.source]] = True
    others: dict[Node, Ids] = {}
    cut_further = set()
    for piece in scout.pieces:
        if is_cut[classes[piece.ids]].all():
            cut_further.add(piece.view)
        if piece.view in heads and piece.dim != heads[piece.view]:
            others[piece.view] = piece.ids
    return [ids for view, ids in others.items() if view not in cut_further]


def _cuts_along(ids: Sequence[Ids], classes: Ids, scout: Scout) -> dict[Node, int]:
    """Views with a piece along given ids -> the dimension of that piece; ids that such a view cuts count as given."""
    is_given = np.zeros(len(classes), bool)  # by class
    for one in ids:
        is_given[classes[one]] = True
    found: dict[Node, int] = {}
    for piece in reversed(scout.pieces):
        if is_given[classes[piece.ids]].all():
            is_given[classes[piece.source]] = True
            found[piece.view] = piece.dim
    return found
