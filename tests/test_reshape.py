"""Runs of dimensions, and where channels lie after a change of shape."""

import numpy as np
import pytest

from mmprune_gates.channels.reshape import grid, lines, runs, spread


def spans(old, new):
    return [((a.start, a.stop), (b.start, b.stop)) for a, b in runs(old, new)]


@pytest.mark.parametrize(
    ('old', 'new', 'expected'),
    [
        ((2, 6), (2, 6), [((0, 1), (0, 1)), ((1, 2), (1, 2))]),
        ((2, 6, 4, 5), (2, 3, 2, 20), [((0, 1), (0, 1)), ((1, 2), (1, 3)), ((2, 4), (3, 4))]),
        ((2, 6, 4, 4), (2, 96), [((0, 1), (0, 1)), ((1, 4), (1, 2))]),
        ((2, 6, 1, 1), (2, 6), [((0, 1), (0, 1)), ((1, 4), (1, 2))]),
        ((2, 6), (2, 6, 1, 1), [((0, 1), (0, 1)), ((1, 2), (1, 4))]),
        ((2, 3, 2, 4), (2, 6, 4), [((0, 1), (0, 1)), ((1, 3), (1, 2)), ((3, 4), (2, 3))]),
        ((4, 6), (6, 4), [((0, 2), (0, 2))]),
        ((), (), []),
        ((1,), (), [((0, 1), (0, 0))]),
        ((), (1, 1), [((0, 0), (0, 2))]),
        ((2, 1, 3), (2, 3), [((0, 1), (0, 1)), ((1, 3), (1, 2))]),
    ],
)
def test_runs(old, new, expected):
    assert spans(old, new) == expected


def spread_over(ids, dim, before, after):
    """Where channels along dimension ``dim`` of a run lie in the same run seen in another shape."""
    return spread(ids, grid(np.arange(len(ids)), dim, before, after))


def test_spread_of_a_split_dimension_varies_over_all_parts():
    assert np.array_equal(spread_over(np.arange(6), 0, (6,), (2, 3)), np.arange(6).reshape(2, 3))


def test_spread_over_positions_repeats_the_channels():
    found = spread_over(np.arange(3), 0, (3, 4), (12,))
    assert np.array_equal(found, np.repeat(np.arange(3), 4))


def test_spread_drops_dimensions_that_hold_no_channel():
    assert np.array_equal(spread_over(np.arange(3), 0, (3, 4), (3, 2, 2)), np.arange(3).reshape(3, 1, 1))
    assert np.array_equal(spread_over(np.arange(3), 1, (2, 3), (1, 2, 3)), np.arange(3).reshape(1, 1, 3))


def test_spread_sees_equal_ids_as_one_channel():
    assert spread_over(np.array([7, 8, 7, 8]), 0, (4,), (2, 2)).tolist() == [[0, 1]]


def test_grid_is_numpys_reshape():
    assert grid(np.array([1, 2]), 1, (3, 2), (6,)).tolist() == [1, 2, 1, 2, 1, 2]


def test_lines_are_the_elements_along_a_dimension():
    assert lines(np.arange(6).reshape(2, 3), 0).tolist() == [[0, 3], [1, 4], [2, 5]]
    assert lines(np.arange(6).reshape(2, 3), 1).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert lines(grid(np.array([7, 8]), 0, (2, 3), (6,)), 0).tolist() == [[7, 7, 7, 8, 8, 8]]
