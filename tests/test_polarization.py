"""GDP's gate: exactly 1 at 1 and 0 at 0, polarised between, with the gradient of the formula."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmprune_gates.gates import PolarizationGate
from mmprune_gates.gates.polarization import polarize

EPS = [0.5, 0.1, 1e-2, 1e-4, 1e-8]


@given(st.floats(1e-9, 10), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_one_is_exactly_one_and_zero_exactly_zero(eps, dtype):
    gate = PolarizationGate(2, eps).to(dtype)
    gate.theta.data = torch.tensor([0, 1], dtype=dtype)
    assert gate().tolist() == [0.0, 1.0]


@pytest.mark.parametrize('eps', EPS)
def test_gradient_of_the_formula(eps):
    theta = torch.linspace(0, 1.5, 31, dtype=torch.double, requires_grad=True)
    (grad,) = torch.autograd.grad(polarize(theta, eps).sum(), theta)
    expected = (1 + eps) * 2 * eps * theta / (theta**2 + eps) ** 2
    assert torch.allclose(grad, expected, rtol=1e-14 / eps, atol=1e-15)  # autograd subtracts what differs by eps
    assert grad[0] == 0


@pytest.mark.parametrize('eps', EPS)
def test_values_rise_from_zero_to_one(eps):
    value = polarize(torch.linspace(0, 1, 101, dtype=torch.double), eps)
    assert (value.diff() > 0).all() and value[0] == 0 and value[-1] == 1


def test_a_smaller_eps_polarises_more():
    theta = torch.tensor([0.05, 0.3])
    values = torch.stack([polarize(theta, eps) for eps in EPS])
    assert (values.diff(dim=0) > 0).all() and values[-1].min() > 0.999


def test_eps_is_saved_but_not_trained():
    gate = PolarizationGate(3, 0.2)
    assert gate.state_dict().keys() == {'theta', 'eps'}
    assert [name for name, _ in gate.named_parameters()] == ['theta']
    other = PolarizationGate(3)
    other.load_state_dict(gate.state_dict())
    assert float(other.eps) == pytest.approx(0.2)


@pytest.mark.parametrize('eps', [0, -1])
def test_eps_must_be_positive(eps):
    with pytest.raises(ValueError, match=f'eps must be a positive number, got {eps}'):
        PolarizationGate(3, eps)
