"""The base gate: the parameter is the value; what a straight-through gradient is."""

import pytest
import torch

from mmprune_gates.gates import Gate, PolarizationGate


class Cubic(Gate):
    """A gate of one's own."""

    def value(self, theta):
        return theta**3


def test_a_new_gate_is_open():
    gate = Gate(5)
    assert torch.equal(gate(), torch.ones(5)) and gate.theta.shape == (5,)
    assert repr(gate) == 'Gate(size=5)'


@pytest.mark.parametrize('make', [Gate, Cubic, PolarizationGate])
def test_the_gradient_of_theta_is_the_derivative_of_the_value(make):
    gate = make(3).double()
    gate.theta.data = torch.tensor([0.0, 0.4, 1.0], dtype=torch.double)
    step = 1e-6
    numeric = (gate.value(gate.theta + step) - gate.value(gate.theta - step)) / (2 * step)
    gate().sum().backward()
    assert torch.allclose(gate.theta.grad, numeric, atol=1e-8)


def test_straight_through_gives_the_gradient_with_respect_to_the_value():
    gate = Cubic(3)
    gate.theta.data = torch.tensor([0.0, 0.5, 1.0])
    gate.straight_through = True
    value = gate()
    assert torch.equal(value, gate.theta.detach() ** 3)
    (value * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert gate.theta.grad.tolist() == [1.0, 2.0, 3.0]  # a closed gate has one too


def test_without_it_the_gradient_is_that_of_theta():
    gate = Cubic(3)
    gate.theta.data = torch.tensor([0.0, 0.5, 1.0])
    gate().sum().backward()
    assert gate.theta.grad.tolist() == [0.0, 0.75, 3.0]
