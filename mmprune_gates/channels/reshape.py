"""What a change of shape does to a vector of channel ids. Pure numpy; sizes only, no graph."""

from __future__ import annotations

from math import prod

import numpy as np

from mmprune_gates.channels.labels import Shape


def runs(old: Shape, new: Shape) -> list[tuple[range, range]]:
    """The finest split of two shapes of equal size into runs of dimensions with equal products.

    >>> runs((2, 6, 4, 5), (2, 3, 2, 20))
    [(range(0, 1), range(0, 1)), (range(1, 2), range(1, 3)), (range(2, 4), range(3, 4))]
    """
    found = []
    i = j = 0
    while i < len(old) or j < len(new):
        before, after = old[i:], new[j:]
        m, n = _first_run(before, after)
        if prod(before[m:]) == prod(after[n:]) == 1:  # trailing ones belong to the last run
            m, n = len(before), len(after)
        found.append((range(i, i + m), range(j, j + n)))
        i, j = i + m, j + n
    return found


def _first_run(old: Shape, new: Shape) -> tuple[int, int]:
    """How many of the first dimensions of two shapes have equal products: as few as possible, but at least one."""
    m, n = min(1, len(old)), min(1, len(new))
    while prod(old[:m]) != prod(new[:n]):
        if prod(old[:m]) < prod(new[:n]):
            m += 1
        else:
            n += 1
    return m, n


def grid(vector: np.ndarray, dim: int, before: Shape, after: Shape) -> np.ndarray:
    """A vector along dimension ``dim`` of a run ``before``, seen as ``after``: its element at each position."""
    shape = [1] * len(before)
    shape[dim] = -1
    return np.broadcast_to(vector.reshape(shape), before).reshape(after)


def copies(vector: np.ndarray, dim: int, before: Shape, after: Shape, along: int) -> np.ndarray:
    """What :func:`grid` gives, as rows: one for each line of elements along dimension ``along`` of ``after``."""
    elements = grid(vector, dim, before, after)
    return np.moveaxis(elements, along, -1).reshape(-1, after[along])


def spread(ids: np.ndarray, dim: int, before: Shape, after: Shape) -> np.ndarray:
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
        if (ids[first] == ids[positions]).all():
            positions = first
    return positions
