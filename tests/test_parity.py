"""A difference anywhere, or a value that is no number, is seen."""

import math

import pytest
import torch
from torch import nn

from mmprune_gates.slimming.parity import TOLERANCE, exact_outputs, relative_error


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


def test_labels_and_masks_count_and_what_is_empty_is_equal():
    labels, mask, nothing = torch.tensor([0, 4]), torch.tensor([True, False]), torch.zeros(0, 3)
    assert relative_error([labels, mask, nothing], [labels, mask, nothing]) == 0
    assert relative_error([labels], [torch.tensor([0, 3])]) == pytest.approx(0.25)
    assert relative_error([mask], [torch.tensor([True, True])]) == 1
    assert relative_error([], []) == 0


class Drawn(nn.Linear):
    """Draws numbers in evaluation mode as well, as SegNeXt's matrix factors do."""

    def forward(self, x):
        return super().forward(x) + torch.rand(2, dtype=x.dtype)


def test_what_a_model_draws_is_the_same_every_time_and_the_run_draws_on():
    model, options = Drawn(3, 2), ((torch.ones(1, 3),), {})
    torch.manual_seed(1)
    expected = torch.rand(4)
    torch.manual_seed(1)
    assert relative_error(exact_outputs(model, None, options), exact_outputs(model, None, options)) == 0
    assert torch.equal(torch.rand(4), expected)
