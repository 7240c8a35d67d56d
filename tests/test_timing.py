"""Measured latencies: ops and models by both backends, selections, the fit, the command line, the verdict."""

import json
from pathlib import Path

import latency_table
import onnx
import pytest
import report
import slim
import torch
import train
from helpers import WIDER, traced
from test_latency import STEP, table_of, wide
from toy_nets import Concat, Depthwise, LinearRanks, Residual

from mmprune_gates import trace_channels
from mmprune_gates.budget.latency import Latency, kind_of
from mmprune_gates.budget.latency_table import Curve, Fit, Table, Target, relative_errors
from mmprune_gates.engine.onnx_graph import session_of
from mmprune_gates.timing import probe
from mmprune_gates.timing.clock import medians
from mmprune_gates.timing.narrowing import at_widths
from mmprune_gates.timing.onnx_ops import Side, owners_of, translated
from mmprune_gates.timing.probe import INPUT, WIDTHS, Probe
from mmprune_gates.timing.table import backend_of, curves_of, fit, prices, random_selections

ROOT = Path(__file__).parents[1]
BACKENDS = pytest.mark.parametrize('name', ['torch', 'onnxruntime'])


def quiet(parts, _):
    return parts


@pytest.mark.parametrize(
    ('name', 'net'),
    [('torch', Residual), ('torch', Concat), ('torch', LinearRanks), ('onnxruntime', Depthwise)],
)
def test_every_op_is_timed_at_every_width(name, net):
    _, graph, _ = traced(net)
    works = {kind_of(work).signature: work for work in graph.workload.works}
    for work, curve in zip(works.values(), curves_of([*works.values()], backend_of(Target(name)), 2, 1), strict=True):
        ms = torch.tensor(curve.ms)
        assert ms.shape == (len(curve.reads), len(curve.makes))
        assert bool((ms >= 0).all())
        if work.name in ('conv2d', 'linear'):
            assert bool((ms > 0).all())


def test_an_op_that_does_not_run_at_a_width_is_taken_to_be_proportional():
    _, graph = wide()
    work = next(work for work in graph.workload.works if work.name == 'relu')
    (row,) = at_widths(work, STEP)

    class Stubborn:
        """Times nothing but the full width."""

        def ms(self, ops):
            return [None] * (len(ops) - 1) + [8.0]

    (curve,) = curves_of([work], Stubborn(), STEP, 1)
    assert curve.ms[0] == pytest.approx([8.0 * op.makes / row[-1].makes for op in row])


@pytest.mark.parametrize('groups', [1, 32])
def test_onnxruntime_runs_a_convolution_without_bias_as_in_a_model(groups):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 1), torch.nn.Conv2d(32, 32, 3, groups=groups, bias=False))
    graph = trace_channels(model, (torch.zeros(1, 3, 8, 8),))
    (*_, op) = at_widths(graph.workload.works[-1], STEP)[-1]
    assert [node.op_type for node in translated(Side([op])).graph.node] == ['Conv']  # its bias is no computed one


def test_an_op_that_vanishes_moves_no_other_ones_time(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 1), torch.nn.Dropout(), torch.nn.Conv2d(32, 8, 1)).eval()
    works = trace_channels(model, (torch.zeros(1, 3, 8, 8),)).workload.works
    assert [work.name for work in works] == ['conv2d', 'dropout', 'conv2d']
    ops = [at_widths(work, STEP)[-1][-1] for work in works]
    session_of(translated(Side(ops)), optimized_model_filepath=str(tmp_path / 'model.onnx'))
    optimized = onnx.load(tmp_path / 'model.onnx')
    owners, reads = owners_of(optimized), {}
    for node in optimized.graph.node:
        reads |= {name: owners[node.name] for name in node.input if name.startswith('input')}
    assert reads == {'input0': 0, 'input1': 1, 'input2': 2}


def test_further_models_are_compared_with_the_whole_one_of_their_round():
    _, graph = wide()
    cost = Latency()
    cost.look_up(graph, table_of(graph), [kind_of(work) for work in graph.workload.works])
    cost.fitted(Fit(1.0, 0.0, []))
    chosen = random_selections(graph, STEP, 12, seed=0)
    slow = iter([2.0, 4.0])  # the machine, in each round

    def time(chosen):
        factor = next(slow)
        return [factor * ms for ms in prices(cost, chosen).tolist()]

    whole_ms = float(prices(cost, [graph.kept()]))
    pairs, drifts = latency_table.further(chosen, cost, graph, time, whole_ms)
    assert drifts == pytest.approx([2.0, 4.0]) and len(pairs) == 12
    assert relative_errors(pairs) == pytest.approx([0.0] * 12)


def test_random_selections_are_of_all_sizes_and_in_steps():
    _, graph = wide()
    chosen = random_selections(graph, STEP, 6, seed=0)
    shares = [graph.macs(kept) / graph.macs() for kept in chosen]
    assert max(shares) > 2 * min(shares)
    assert all(int(mask.sum()) % STEP == 0 for kept in chosen for mask in kept.values())
    again = random_selections(graph, STEP, 6, seed=0)
    assert all(torch.equal(a.vector, b.vector) for a, b in zip(chosen, again, strict=True))


def test_the_fit_finds_scale_and_overhead(tmp_path):
    model, graph = wide()
    table = table_of(graph)

    class Exact:
        """A machine on which a model takes three times what its ops take, and 0.25 ms for each op."""

        @staticmethod
        def now():
            return Exact.clock

        def call(self, slim, images):
            widths = [slim.a[0].out_channels, slim.b[0].out_channels]
            ops = 3 * widths[0] + widths[0] * widths[1] + 4 * widths[1] + 2 * 64 * sum(widths)

            def run():
                Exact.clock += 1e-3 * (3 * 1e-3 * ops + 0.25 * 7)

            return run

    Exact.clock = 0.0
    found = fit(table, graph, model, torch.randn(1, 3, 8, 8), Exact(), Latency(str(tmp_path / 'none')), quiet)
    assert (found.scale, found.overhead) == pytest.approx((3.0, 0.25))
    assert max(relative_errors(found.selections)) < 1e-6


@BACKENDS
def test_models_are_timed(name):
    backend = backend_of(Target(name))
    narrow, broad = medians([backend.call(Probe(width), torch.ones(INPUT)) for width in (16, 128)], backend.now)
    assert 0 < narrow < broad


class FixedBatch(torch.nn.Module):
    """Takes two images only."""

    def forward(self, images, mode='tensor'):
        return images.reshape(2, 3, -1).mean(2)


def test_a_model_that_fixes_the_batch_is_timed_with_it():
    backend = backend_of(Target('onnxruntime', batch=2))
    assert medians([backend.call(FixedBatch(), torch.ones(2, 3, 4, 4))], backend.now)[0] > 0


def in_blocks(width, block):
    """Time in which whole blocks of channels are computed, and widths are moved where they do not fill fours."""
    return -(-width // block) * (2.0 if width % 4 else 1.0)


@pytest.mark.parametrize('block', [4, 8, 16])
def test_the_step_is_that_of_the_blocks(block, monkeypatch):
    monkeypatch.setattr(probe, 'medians', lambda calls, now: [in_blocks(width, block) for width in WIDTHS])
    assert probe.step_of(lambda model, images: None, None) == block


def test_rounding_further_is_compared_for_multiples_only():
    took = {width: in_blocks(width, 16) for width in WIDTHS}
    assert probe.slowdown(took, 4, 8) == 1.0 and probe.slowdown(took, 2, 4) == 0.5
    assert probe.slowdown(took, 16, 32) == 4 / 3


@pytest.fixture(scope='module')
def measured(tmp_path_factory, tiny_config):
    """A tiny config of GDP with a latency for a target, and its table, measured by the command line."""
    folder = tmp_path_factory.mktemp('latency')
    config = tiny_config(folder / 'run', **WIDER)
    config.custom_hooks[0].cost = dict(type='Latency', table=str(folder / 'table.json'))
    config.custom_hooks[0].target_macs = 0.7
    config.dump(folder / 'config.py')
    arguments = [str(folder / 'config.py'), '--table', str(folder / 'table.json')]
    extra = ['--check', '2', '--picture', str(folder / 'picture.png'), '--json', str(folder / 'report.json')]
    assert latency_table.main([*arguments, *extra]) == 0
    return folder


@pytest.mark.models
def test_the_command_line_writes_table_picture_and_figures(measured):
    table = Table.load(measured / 'table.json')
    report = json.loads((measured / 'report.json').read_text())
    assert report['step'] == table.step
    assert len(report['fit']['predicted_and_measured_ms']) == 11
    assert len(report['check']['predicted_and_measured_ms']) == 2
    assert (measured / 'picture.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.slow
@pytest.mark.models
def test_what_is_known_is_not_measured_again(measured):
    before = Table.load(measured / 'table.json')
    assert latency_table.main([str(measured / 'config.py'), '--table', str(measured / 'table.json')]) == 0
    after = Table.load(measured / 'table.json')
    assert (after.curves, after.step) == (before.curves, before.step)


@pytest.mark.models
def test_what_two_processes_measure_at_once_is_all_in_the_file(tmp_path):
    path = tmp_path / 'table.json'
    first, second = (Table(Target().facts()) for _ in range(2))
    first.curves['a'] = second.curves['b'] = Curve([1], [1], [[1.0]])
    first.fits['a'] = second.fits['b'] = Fit(1.0, 0.0, [])
    for table in (first, second, first):
        latency_table.save_table(table, path)
    both = Table.load(path)
    assert (set(both.curves), set(both.fits)) == ({'a', 'b'}, {'a', 'b'})


def test_a_table_of_other_settings_is_refused(measured, capsys):
    arguments = ['--table', str(measured / 'table.json'), '--threads', '2']
    assert latency_table.main([str(measured / 'config.py'), *arguments]) == 1
    assert 'was measured with threads 1, not 2' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.models
def test_a_run_prunes_to_it_and_slimming_states_the_verdict(measured, capsys):
    config = str(measured / 'config.py')
    assert train.main([config, '--work-dir', str(measured / 'run')]) == 0
    checkpoint = (measured / 'run' / 'last_checkpoint').read_text()
    assert slim.main([config, checkpoint, str(measured / 'slim')]) == 0
    assert 'measured is off by' in capsys.readouterr().out
    latency = json.loads((measured / 'slim' / 'slim.json').read_text())['latency']
    assert latency['predicted_ms']['kept'] <= 0.7
    assert latency['measured_ms']['after'] > 0
    step = Table.load(measured / 'table.json').step
    groups = json.loads((measured / 'slim' / 'slim.json').read_text())['groups'].values()
    assert all(len(group['kept']) % step == 0 or len(group['kept']) == group['size'] for group in groups)
    elsewhere = ['--cfg-options', f'custom_hooks.0.cost.table={measured / "absent.json"}']
    assert slim.main([config, checkpoint, str(measured / 'elsewhere'), *elsewhere]) == 0
    assert 'the latency was not measured: no table of latencies' in capsys.readouterr().out
    assert 'no table' in json.loads((measured / 'elsewhere' / 'slim.json').read_text())['latency']['not_measured']
    pages = ['--slim', str(measured / 'elsewhere'), '--out', str(measured / 'report')]
    assert report.main([str(measured / 'run'), *pages]) == 0
