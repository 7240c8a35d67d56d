"""What a change of shape does to a vector of channel ids. Pure numpy; sizes only, no graph."""

from __future__ import annotations

from math import prod

import numpy as np


def runs(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[range, range]]:
    """The finest split of two shapes of equal size into runs of dimensions with equal products.

    >>> runs((2, 6, 4, 5), (2, 3, 2, 20))
    [(range(0, 1), range(0, 1)), (range(1, 2), range(1, 3)), (range(2, 4), range(3, 4))]
    """
    found, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        first = i, j
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while (a := prod(old[first[0] : i])) != (b := prod(new[first[1] : j])):
            i, j = (i + 1, j) if a < b else (i, j + 1)
        if prod(old[i:]) == 1 and prod(new[j:]) == 1:  # trailing ones belong to the last run
            i, j = len(old), len(new)
        found.append((range(first[0], i), range(first[1], j)))
    return found


def grid(vector: np.ndarray, dim: int, before: tuple[int, ...], after: tuple[int, ...]) -> np.ndarray:
    """A vector along dimension ``dim`` of a run ``before``, seen as ``after``: its element at each position."""
    shape = [-1 if d == dim else 1 for d in range(len(before))]
    return np.broadcast_to(vector.reshape(shape), before).reshape(after)


def spread(ids: np.ndarray, dim: int, before: tuple[int, ...], after: tuple[int, ...]) -> np.ndarray:
    """Where the channels along dimension ``dim`` of a run ``before`` lie in the same run seen as ``after``.

    Args:
        ids: (before[dim],) channel at each position.
        dim: The dimension of the run that holds them.
        before: Sizes of the run.
        after: Sizes of the same run after the change of shape.

    Returns:
        Positions into ``ids``, shape ``after``, reduced to size 1 along every dimension the channel does not
        change over.
    """
    positions = grid(np.arange(len(ids)), dim, before, after)
    for d in range(positions.ndim):
        first = positions.take([0], axis=d)
        if positions.shape[d] > 1 and np.array_equal(np.broadcast_to(ids[first], positions.shape), ids[positions]):
            positions = first
    return positions
