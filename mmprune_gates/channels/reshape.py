"""What a change of shape does to a vector of channel ids. Pure numpy; sizes only, no graph."""

from __future__ import annotations

from math import prod

import numpy as np

from mmprune_gates.channels.labels import Ids, Shape


def runs(old: Shape, new: Shape) -> list[tuple[range, range]]:
    """The finest split of two shapes of equal size into runs of dimensions with equal products.

    >>> runs((2, 6, 4, 5), (2, 3, 2, 20))
    [(range(0, 1), range(0, 1)), (range(1, 2), range(1, 3)), (range(2, 4), range(3, 4))]
    """
    found = []
    i = j = 0
    while i < len(old) or j < len(new):
        m, n = _first_run(old[i:], new[j:])
        before = range(i, i + m)
        after = range(j, j + n)
        found.append((before, after))
        i = before.stop
        j = after.stop
    return found


def _first_run(old: Shape, new: Shape) -> tuple[int, int]:
    """How many leading dimensions of two shapes have equal products: as few as possible, but at least one.

    If only dimensions of size 1 would be left, they belong to the run as well.
    """
    m = min(1, len(old))
    n = min(1, len(new))
    while prod(old[:m]) != prod(new[:n]):
        if prod(old[:m]) < prod(new[:n]):
            m += 1
        else:
            n += 1
    if prod(old[m:]) == prod(new[n:]) == 1:
        return len(old), len(new)
    return m, n


def grid(vector: Ids, dim: int, before: Shape, after: Shape) -> Ids:
    """A vector laid along dimension ``dim`` of a run of shape ``before``, viewed in shape ``after``."""
    shape = [1] * len(before)
    shape[dim] = -1
    column = vector.reshape(shape)
    return np.broadcast_to(column, before).reshape(after)


def lines(elements: Ids, along: int) -> Ids:
    """The lines of elements along a dimension, one per row."""
    last = np.moveaxis(elements, along, -1)
    return last.reshape(-1, last.shape[-1])


def spread(ids: Ids, positions: Ids) -> Ids:
    """Find the dimensions of a run over which its channels vary.

    Args:
        ids: (C,) the channels.
        positions: Position in ``ids`` at each place of the run.

    Returns:
        ``positions``, reduced to size 1 along every dimension over which the channel does not change.
    """
    for dim in range(positions.ndim):
        first = positions.take([0], axis=dim)
        if (ids[first] == ids[positions]).all():
            positions = first
    return positions
