"""A difference anywhere, or a value that is no number, is seen."""

import math

import pytest
import torch

from mmprune_gates.slimming.parity import TOLERANCE, relative_error


def test_the_largest_difference_of_all_outputs_counts():
    expected = [torch.tensor([1.0, -4.0]), torch.tensor([0.5])]
    found = [torch.tensor([1.0, -3.0]), torch.tensor([0.5])]
    assert relative_error(expected, found) == pytest.approx(0.25)
    assert relative_error(expected, expected) == 0


@pytest.mark.parametrize('place', [0, 1])
def test_a_value_that_is_no_number_is_never_equal(place):
    expected = [torch.ones(2), torch.ones(2)]
    found = [torch.ones(2), torch.ones(2)]
    found[place][1] = math.nan
    assert not relative_error(expected, found) <= TOLERANCE
