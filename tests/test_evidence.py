"""Gates provably act: on the modules of the model that trains, with finite gradients; else it is said where not."""

import pytest
import torch
from helpers import toy
from mmengine.model import convert_sync_batchnorm
from toy_nets import Plain, Residual

from mmprune_gates.gates import DecoratorGate, Evidence, GatesDoNotAct, PolarizationGate, attach_gates, detach_gates
from mmprune_gates.gates.evidence import PATIENCE


@pytest.fixture(params=[PolarizationGate, DecoratorGate])
def gated(request):
    model, graph, inputs = toy(Residual)
    return model.train(), attach_gates(model, graph, request.param), inputs


def step(model, gates, evidence, inputs, factor=1.0):
    """One forward and backward, and what it tells."""
    model.zero_grad()
    (model(inputs).square().mean() * factor).backward()
    evidence.note({name: gates[name].theta.grad for name in evidence.sizes if gates[name].theta.grad is not None})


def test_gates_that_act_pass_every_check(gated):
    model, gates, inputs = gated
    evidence = Evidence(model, gates)
    evidence.check()  # before the first iteration
    for _ in range(2):
        step(model, gates, evidence, inputs)
        evidence.check()
        evidence.check()  # nothing has happened since


def test_each_check_begins_anew(gated):
    model, gates, inputs = gated
    evidence = Evidence(model, gates)
    step(model, gates, evidence, inputs)
    evidence.check()
    for _ in range(PATIENCE):
        step(model, gates, evidence, inputs, factor=torch.nan)
    with pytest.raises(GatesDoNotAct, match='no finite gradient'):
        evidence.check()


def test_a_few_mini_batches_that_overflow_prove_nothing(gated):
    model, gates, inputs = gated
    evidence = Evidence(model, gates)
    for _ in range(PATIENCE - 1):
        step(model, gates, evidence, inputs, factor=torch.inf)
        evidence.check()
    step(model, gates, evidence, inputs, factor=torch.inf)
    with pytest.raises(GatesDoNotAct, match='no finite gradient'):
        evidence.check()
    step(model, gates, evidence, inputs)
    evidence.check()


def test_one_finite_iteration_is_enough(gated):
    model, gates, inputs = gated
    evidence = Evidence(model, gates)
    for factor in (torch.inf, 1.0, torch.nan):
        step(model, gates, evidence, inputs, factor)
    evidence.check()


def test_a_module_that_was_replaced(gated):
    model, gates, inputs = gated
    evidence = Evidence(model, gates)
    converted = convert_sync_batchnorm(model)
    assert converted is model
    with pytest.raises(GatesDoNotAct, match=r'is a SyncBatchNorm that no gate acts on: it took the place of the Batch'):
        evidence.check()


def test_gates_follow_norms_that_were_converted(gated):
    model, gates, inputs = gated
    scaled = {name: torch.rand(value.shape, dtype=value.dtype) for name, value in gates.named_parameters()}
    gates.load_state_dict({**gates.state_dict(), **scaled})
    expected = model.eval()(inputs)
    convert_sync_batchnorm(model)
    assert not torch.allclose(model.eval()(inputs), expected)
    gates.follow(model)
    assert torch.equal(model.eval()(inputs), expected)
    evidence = Evidence(model.train(), gates)
    step(model, gates, evidence, inputs)
    evidence.check()
    detach_gates(model)
    assert not any(module._forward_pre_hooks for module in model.modules())  # noqa: SLF001


def test_gates_do_not_follow_a_module_with_other_parameters(gated):
    model, gates, _ = gated
    path = gates.placements[0].module
    model.set_submodule(path, torch.nn.BatchNorm2d(gates.scales[0].module.num_features))
    with pytest.raises(RuntimeError, match=f'{path}: .* replaced by a BatchNorm2d with other parameters'):
        gates.follow(model)


def test_a_module_that_has_gone():
    model, graph, _ = toy(Plain)
    gates = attach_gates(model, graph, PolarizationGate)
    del model.b
    with pytest.raises(RuntimeError, match='b.1: a gate acts on this module, which the model no longer has'):
        Evidence(model, gates).check()


def test_a_module_that_is_bypassed(gated, monkeypatch):
    model, gates, inputs = gated
    evidence = Evidence(model, gates)
    skipped = type(gates.scales[-1].module)
    with monkeypatch.context() as patch:
        patch.setattr(skipped, '__call__', lambda self, x: self.forward(x))
        step(model, gates, evidence, inputs)
    with pytest.raises(GatesDoNotAct, match=r'computes without the gates at .*not called. Something bypasses them'):
        evidence.check()


def test_a_gate_without_a_gradient(gated):
    model, gates, inputs = gated
    evidence = Evidence(model, gates)
    name = next(iter(evidence.sizes))
    gates[name].theta.requires_grad_(False)
    step(model, gates, evidence, inputs)
    with pytest.raises(GatesDoNotAct, match=f'no finite gradient has reached the gates of {name}'):
        evidence.check()


def test_gates_have_one_owner(gated):
    _, gates, _ = gated
    gates.claim('FirstHook')
    with pytest.raises(ValueError, match='SecondHook: the gates of this model are moved by FirstHook already'):
        gates.claim('SecondHook')
