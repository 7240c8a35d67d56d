"""Heads: which views cut channels into heads, and what the code of a model counts by them.

A view from C to (h, d) leaves two ways to become narrower. Where products stand each for itself along one of the parts,
as in attention, that part counts heads: a head goes as a whole, and all that scales with d stays what it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from mmprune_gates.channels.flow import Flow, Scout
from mmprune_gates.channels.labels import Ids


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


def heads_of(flow: Flow, scout: Scout) -> dict[Node, int]:
    """Views that cut channels into heads -> the dimension of their result that counts the heads.

    A view that another one cuts further counts by what the other one counts.

    Args:
        flow: What a walk has found that cuts channels along all dimensions at once.
        scout: What it has noted.
    """
    classes = flow.classes()
    counted = np.zeros(flow.num_ids, bool)  # by class
    for ids in scout.batches:
        counted[classes[ids]] = True
    found: dict[Node, int] = {}
    for piece in reversed(scout.pieces):
        if counted[classes[piece.ids]].all():
            counted[classes[piece.source]] = True
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
