"""Heads: which views cut channels into heads, and what the code of a model counts by them.

A view from C to (h, d) leaves two ways to become narrower. Where products stand each for itself along one of the parts,
as in attention, that part counts heads: a head goes as a whole, and all that scales with d stays what it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from mmprune_gates.channels.flow import Flow, Scout
from mmprune_gates.channels.labels import Ids

HEADS, DIMS = 'heads', 'dims'  # what goes of attention


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
    """An attribute of a module that says how many channels there are; it becomes the number of those kept.

    Attributes:
        module: Path of the module.
        attribute: Its name.
        index: (C,) channel at each position, -1 for none.
    """

    module: str
    attribute: str
    index: Tensor


def heads_of(flow: Flow, scout: Scout, attention: str = HEADS) -> dict[Node, int]:
    """Views that cut channels into heads -> the dimension of their result along which channels can go.

    A view that another one cuts further goes by what the other one cuts. Where nothing counts heads, as in attention
    with a single one, channels go that products sum over.

    Args:
        flow: What a walk has found that cuts channels along all dimensions at once.
        scout: What it has noted.
        attention: Whether ``heads`` go, or ``dims``: a channel of each.
    """
    classes = flow.classes()
    heads = _cuts_along(scout.batches, classes, scout)
    if attention == HEADS:
        return _cuts_along(scout.summed, classes, scout) | heads
    return heads | _cuts_along([*scout.summed, *_beside(heads, classes, scout)], classes, scout)


def tie_cuts(flow: Flow) -> None:
    """Let all heads of a module lose the same channels, those of v like those of q and k: one number counts them."""
    first: dict[tuple[str, int], Ids] = {}
    for layer, ids in flow.cuts:
        flow.unite(first.setdefault((layer, len(ids)), ids), ids)


def _beside(heads: Mapping[Node, int], classes: Ids, scout: Scout) -> list[Ids]:
    """What lies along the last other dimension of views that count heads and are not cut further."""
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
    """Views of whose pieces some lie along given ids -> the dimension of those pieces."""
    is_given = np.zeros(len(classes), bool)  # by class
    for one in ids:
        is_given[classes[one]] = True
    found: dict[Node, int] = {}
    for piece in reversed(scout.pieces):
        if is_given[classes[piece.ids]].all():
            is_given[classes[piece.source]] = True
            found[piece.view] = piece.dim
    return found


def find_seen(seen: Sequence[tuple[str, Ids]], indices: Sequence[Tensor], heads: Tensor) -> tuple[Seen, ...]:
    """What modules view that holds heads, each once.

    Args:
        seen: Path of the module and ids, for each view.
        indices: Channel numbers of those ids.
        heads: Numbers of the channels that are heads.
    """
    found: dict[tuple, Seen] = {}
    for (module, _), index in zip(seen, indices, strict=True):
        if torch.isin(index, heads).any():
            key = (module, tuple(index.tolist()))
            found.setdefault(key, Seen(module, index))
    return tuple(found.values())
