"""Latency as a cost: what it looks up, how it rounds, its slopes, and that pruning to it works as to any other."""

import json
import sys

import pytest
import torch
from helpers import random_kept, toy, traced
from torch import nn
from toy_nets import Depthwise, Plain, Residual, conv, conv_bn

from mmprune_gates import GDP, GateDecorator, trace_channels
from mmprune_gates.budget import Candidates, Latency, Limits
from mmprune_gates.budget.latency import Curves, absorbed, kind_of
from mmprune_gates.budget.latency_table import Curve, Fit, Table, Target, digest_of
from mmprune_gates.channels.narrowed import narrowed
from mmprune_gates.slimming import slim_model
from mmprune_gates.timing.narrowing import at_widths

STEP = 4
AS_MEASURED = Fit(1.0, 0.0, [])


class Wide(nn.Module):
    """Wide enough for several steps."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = conv_bn(3, 16), conv_bn(16, 24), conv(24, 4)

    def forward(self, x):
        return self.head(self.b(self.a(x)))


def table_of(graph, step=STEP, fit=AS_MEASURED):
    """A table in which an op takes a microsecond for each pair of channels that it reads and makes."""
    table = Table(Target().facts(), step)
    for work in graph.workload.works:
        grid = at_widths(work, step)
        rows = [[1e-3 * op.reads * op.makes for op in row] for row in grid]
        table.curves[kind_of(work).signature] = Curve(
            [row[0].reads for row in grid], [op.makes for op in grid[0]], rows
        )
    table.fits[digest_of([kind_of(work).signature for work in graph.workload.works])] = fit
    return table


def saved(tmp_path, table):
    path = tmp_path / 'table.json'
    path.write_text(table.text())
    return str(path)


def wide():
    torch.manual_seed(0)
    model = Wide()
    return model, trace_channels(model, torch.randn(2, 3, 8, 8))


def test_a_table_is_what_was_saved(tmp_path):
    _, graph = wide()
    table = table_of(graph)
    path = tmp_path / 'table.json'
    path.write_text(table.text())
    assert Table.load(path).text() == table.text()


@pytest.mark.parametrize('text', ['', '{}', '[]', '{"facts": {}, "step": "a", "curves": {}, "fits": {}}'])
def test_another_file_is_no_table(tmp_path, text):
    path = tmp_path / 'table.json'
    path.write_text(text)
    with pytest.raises(ValueError, match='not a table of latencies'):
        Table.load(path)


DAMAGE = {
    'step': lambda data: data.update(step=0),
    'scale': lambda data: next(iter(data['fits'].values())).update(scale=float('nan')),
    'overhead': lambda data: next(iter(data['fits'].values())).update(overhead=None),
    'width': lambda data: next(iter(data['curves'].values())).update(reads=['a']),
    'times of': lambda data: next(iter(data['curves'].values())).update(ms=[]),
    'times  of': lambda data: next(iter(data['curves'].values()))['ms'][0].__setitem__(0, -1.0),
    'facts': lambda data: data.update(facts=[1]),
}


@pytest.mark.parametrize('damage', DAMAGE)
def test_a_damaged_table_is_refused(tmp_path, damage):
    _, graph = wide()
    data = json.loads(table_of(graph).text())
    DAMAGE[damage](data)
    path = tmp_path / 'table.json'
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match='is not a table of latencies .*: delete it and measure again'):
        Table.load(path)


def test_without_a_table_the_message_has_the_command(tmp_path):
    _, graph = wide()
    cost = Latency(str(tmp_path / 'absent.json'), backend='onnxruntime', threads=2)
    with pytest.raises(ValueError, match=r'CONFIG --backend onnxruntime --threads 2 --table .*absent\.json'):
        cost.bind(graph)


def test_a_table_without_ops_of_the_model_is_refused(tmp_path):
    _, graph = wide()
    table = table_of(graph)
    del table.curves[kind_of(graph.workload.works[0]).signature]
    with pytest.raises(ValueError, match='lacks 1 ops of the model'):
        Latency(saved(tmp_path, table)).bind(graph)


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        ({'backend': 'onnxruntime'}, "measured with backend 'torch', not 'onnxruntime'"),
        ({'batch': 8}, 'measured with batch 1, not 8'),
        ({'threads': 2}, 'measured with threads 1, not 2'),
    ],
)
def test_a_table_of_other_settings_is_refused(tmp_path, settings, words):
    _, graph = wide()
    with pytest.raises(ValueError, match=words):
        Latency(saved(tmp_path, table_of(graph)), **settings).bind(graph)


def test_a_table_of_ops_that_were_timed_in_another_way_is_refused(tmp_path):
    _, graph = wide()
    table = table_of(graph)
    table.facts = {name: value for name, value in table.facts.items() if name != 'procedure'}
    with pytest.raises(ValueError, match='measured with procedure None, not'):
        Latency(saved(tmp_path, table)).bind(graph)


def test_a_table_of_another_machine_may_be_given(tmp_path):
    _, graph = wide()
    table = table_of(graph)
    table.facts = {**table.facts, 'machine': 'another'}
    assert Latency(saved(tmp_path, table)).bind(graph).step == STEP


def test_a_backend_that_is_not_installed_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(ValueError, match='cannot be imported'):
        Target('onnxruntime').facts()


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        ({'backend': 'tensorrt'}, 'backend must be one of'),
        ({'device': 'tpu'}, 'device must be cpu, cuda'),
        ({'threads': 0}, 'threads must be'),
        ({'batch': 'a'}, 'batch must be'),
    ],
)
def test_wrong_settings(settings, words):
    with pytest.raises(ValueError, match=words):
        Latency(**settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason='asks what is said where there is no GPU')
def test_cuda_without_a_gpu():
    with pytest.raises(ValueError, match='no CUDA device'):
        Latency(device='cuda')


def test_the_price_is_the_sum_of_what_the_ops_take(tmp_path):
    _, graph = wide()
    cost = Latency(saved(tmp_path, table_of(graph, fit=Fit(2.0, 0.5, [])))).bind(graph)
    kept = graph.keeping(torch.ones(graph.num_channels, dtype=torch.bool))
    layers = 3 * 16 + 16 * 24 + 24 * 4
    others = 2 * 64 * (16 + 24)  # norm and ReLU at 8 x 8 positions
    assert float(cost.price(kept.vector.double())) == pytest.approx(2e-3 * (layers + others) + 0.5 * 7)


def test_widths_between_steps_cost_as_much_as_the_next(tmp_path):
    _, graph = wide()
    cost = Latency(saved(tmp_path, table_of(graph))).bind(graph)
    layers = torch.tensor([work.name == 'conv2d' for work in graph.workload.works])
    group = graph.group('b.0')

    def price(width):
        value = torch.ones(graph.num_channels).double()
        value[group.start + width : group.span.stop] = 0
        return float(cost.per_op(value)[layers].sum())

    assert price(9) == price(12) < price(13) == price(16)


def test_a_width_that_is_slower_than_a_larger_one_counts_as_that():
    curves = Curves([Curve([8], [4, 8, 16], [[5.0, 3.0, 4.0]])], [1])
    widths = torch.tensor([4.0, 8.0, 16.0]).double()
    found = [float(curves(torch.tensor([8.0]).double(), width[None])) for width in widths]
    assert found == [3.0, 3.0, 4.0]


def test_the_marginal_is_the_slope_of_the_curve(tmp_path):
    _, graph = wide()
    cost = Latency(saved(tmp_path, table_of(graph))).bind(graph)
    value = torch.ones(graph.num_channels).double()
    group = graph.group('a.0')
    per_channel = 1e-3 * (3 + 24 + 2 * 64)  # what reads it and makes it, norm, ReLU
    assert cost.marginal(value)[group.span].tolist() == pytest.approx([per_channel] * group.size)


def test_a_graph_of_what_is_left_has_the_same_price(tmp_path):
    model, graph, _ = toy(Residual)
    cost = Latency(saved(tmp_path, table_of(graph, step=1)))
    kept = graph.kept(random_kept(graph))
    expected = float(cost.bind(graph).price(kept.vector.double()))
    left = narrowed(graph, kept, [])
    cost.path.unlink()  # what is measured again during a run changes nothing in it
    cost.narrow(left)
    assert float(cost.price(torch.ones(left.num_channels).double())) == pytest.approx(expected)


def test_selection_closes_whole_steps(tmp_path):
    _, graph = wide()
    candidates = Candidates.of(graph, Limits(), Latency(saved(tmp_path, table_of(graph))).bind(graph))
    kept = candidates.choose(torch.rand(graph.num_channels), 0.5)
    assert candidates.share(kept) <= 0.5
    assert all(int(mask.sum()) % STEP == 0 for mask in kept.values())


def test_what_onnxruntime_carries_out_within_layers():
    _, graph, _ = traced(Residual)
    names = [work.name for work in graph.workload.works]
    inside = absorbed(graph.workload.works)
    assert {names[position] for position in inside} == {'batch_norm', 'relu', 'add'}
    assert len([name for name in names if name.startswith('conv')]) + len(inside) == len(names)


def test_a_depthwise_convolution_has_one_width():
    _, graph, _ = traced(Depthwise)
    kinds = [kind_of(work) for work in graph.workload.works if work.name == 'conv2d']
    assert [len(kind.reads.factors) for kind in kinds] == [0, 0, 0, 1]  # the image, two depthwise, the head


@pytest.mark.parametrize('method', [GDP, GateDecorator])
def test_a_plain_loop_prunes_to_it(tmp_path, method):
    model, graph = wide()
    inputs = torch.randn(2, 3, 8, 8)
    options = dict(total_steps=60) if method is GDP else dict(total_steps=60, tick=2, tock=2, fraction=0.3)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    cost = Latency(saved(tmp_path, table_of(graph)))
    pruner = method(model, inputs, optimizer, target_macs=0.5, cost=cost, **options)
    for _ in range(60):
        if pruner.controller.settled:
            break
        model(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    kept = pruner.controller.kept
    assert 0.3 < pruner.controller.candidates.share(kept) <= 0.5
    assert pruner.finish()['parity_error'] <= 1e-5


def test_the_tables_file_depends_on_machine_and_settings():
    assert Target().path() == Target().path()
    assert Target(threads=2).path() != Target().path()
    assert json.loads(json.dumps(Target().facts())) == Target().facts()


def test_slim_model_is_priced_as_it_is(tmp_path):
    model, graph, inputs = toy(Plain)
    table = table_of(graph, step=1)
    kept = graph.kept(random_kept(graph))
    predicted = float(Latency(saved(tmp_path, table)).bind(graph).price(kept.vector.double()))
    slim_model(model, graph, kept)
    own = trace_channels(model, (inputs,))
    table = table_of(own, step=1)
    assert float(Latency(saved(tmp_path, table)).bind(own).price(torch.ones(own.num_channels).double())) == (
        pytest.approx(predicted)
    )
