"""tools/analysis_tools/benchmark.py: times and memory of gated and ungated steps."""

import json

import benchmark
import pytest
import torch
from helpers import call, randomize_, relative_error, slow_but
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from mmprune_gates.engine.forwards import inference_forward

pytestmark = pytest.mark.models
KINDS = (('fp32', 'channels'), ('bf16', 'channels'), ('fp32', 'blocks'))


@pytest.fixture
def config(tiny_config, tmp_path):
    """Path of a tiny gated config."""
    path = tmp_path / 'tiny.py'
    tiny_config(tmp_path / 'unused').dump(path)
    return str(path)


@pytest.mark.parametrize('kind', slow_but(KINDS[:1], KINDS), ids='-'.join)
def test_figures(config, tmp_path, capsys, kind):
    dtype, units = kind
    out = tmp_path / 'out.json'
    options = ['--cfg-options', f'model.units={units}', 'custom_hooks.0.target_macs=0.8']
    args = ['--crop', '32', '48', '--pairs', '3', '--amp-dtype', dtype, '--json', str(out)]
    assert benchmark.main([config, *args, *options]) == 0
    report = json.loads(out.read_text())
    times = report['seconds']
    assert len(times['gated']) == len(times['ungated']) == 3
    ratio = report['time_ratio']
    assert ratio['range'][0] <= ratio['quartiles'][0] <= ratio['median'] <= ratio['quartiles'][1]
    assert ratio['median'] == sorted(a / b for a, b in zip(times['gated'], times['ungated'], strict=True))[1]
    assert 1 <= report['saved_activation_bytes']['ratio'] < 1.1
    table = capsys.readouterr().out
    assert f'cpu, {dtype}, batch 2 of (32, 48), 3 pairs' in table and 'saved activations, MB' in table


@pytest.mark.slow
def test_a_third_model_whose_channels_have_left(tiny_config, tmp_path, capsys):
    run = tiny_config(tmp_path / 'run')
    run.custom_hooks[0].update(shrink=True, steps=2, target_macs=0.3)
    run.dump(tmp_path / 'run.py')
    Runner.from_cfg(run).train()
    options = [str(tmp_path / 'run.py'), '--crop', '32', '48', '--pairs', '3', '--json', str(tmp_path / 'out.json')]
    assert benchmark.main([*options, '--shrunk', str(tmp_path / 'run' / 'iter_12.pth')]) == 0
    report = json.loads((tmp_path / 'out.json').read_text())
    assert len(report['seconds']['shrunk']) == 3
    pairs = zip(report['seconds']['shrunk'], report['seconds']['ungated'], strict=True)
    assert report['shrunk_time_ratio']['median'] == sorted(a / b for a, b in pairs)[1]
    assert report['saved_activation_bytes']['shrunk_ratio'] < 1
    training = report['training_peak_bytes']
    assert training['shrunk_ratio'] < 1 and training['ungated'] > report['step_peak_bytes']['ungated']
    assert 'shrunk / ungated, time' in capsys.readouterr().out


def test_a_checkpoint_of_which_nothing_has_left_is_refused(gated_run, capsys):
    config, checkpoint = (str(path) for path in gated_run)
    assert benchmark.main([config, '--shrunk', checkpoint]) == 1
    assert 'no channels have left the model there' in capsys.readouterr().err


def test_the_gates_move_while_they_are_timed(config):
    from types import SimpleNamespace

    from mmengine.config import Config

    args = SimpleNamespace(config=config, crop=(32, 48), device='cpu', phase='tock', site=None)
    gated, ungated, shape = benchmark.pair(Config.fromfile(config), args)
    batch = benchmark.inputs_and_samples(Config.fromfile(config), shape, 2, 'cpu')
    for one in (gated, ungated):
        one.step(*batch, None)
    assert (gated.model.gates.theta() < 1).any() and not ungated.hooks


@pytest.mark.parametrize('phase', ['tick', 'tock'])
def test_a_phase_of_gate_decorator_lasts_as_long_as_the_benchmark(tiny_config, tmp_path, phase):
    from types import SimpleNamespace

    config = tiny_config(tmp_path, 'demo/gbn_deeplabv3plus_scenes.py')
    args = SimpleNamespace(config='gbn', crop=(32, 48), device='cpu', phase=phase, site=None)
    gated, _, shape = benchmark.pair(config, args)
    batch = benchmark.inputs_and_samples(config, shape, 2, 'cpu')
    before = gated.model.backbone.layer1[0].conv1.weight.clone()
    for _ in range(4):
        gated.step(*batch, None)
    assert gated.hooks[0].pruner.controller.phase == phase
    assert torch.equal(gated.model.backbone.layer1[0].conv1.weight, before) is (phase == 'tick')
    assert gated.hooks[0].pruner.controller.scored == (4 if phase == 'tick' else 0)


@pytest.mark.parametrize('site', ['input', 'weight'])
def test_gates_in_front_of_readers_compute_the_same(tiny_config, tmp_path, site):
    config = tiny_config(tmp_path).model
    init_default_scope('mmseg')
    model = randomize_(MODELS.build(config)).double()
    theta = torch.ones(model.gates.graph.num_channels).double()
    theta[::3] = 0  # values between are another function behind depthwise convolutions with a norm
    images = torch.randn(2, 3, 32, 48).double()
    outputs = []
    for moved in (False, True):
        if moved:
            benchmark.move_gates(model, site, config.gates)
        model.gates.set_theta(theta)
        model.gates.set_eps(1e-15)
        outputs += call(model, images, inference_forward)
    assert {placement.kind for placement in model.gates.placements} <= {'input', 'weight'}
    assert relative_error(outputs[1:], outputs[:1]) < 1e-12


@pytest.mark.parametrize(('args', 'words'), [(['--device', 'cuda'], 'no GPU'), ([], 'not mmprune_gates.GatedModel')])
def test_bad_input(args, words, tmp_path, capsys):
    if words == 'no GPU' and torch.cuda.is_available():
        return
    path = tmp_path / 'stock.py'
    path.write_text("model = dict(type='EncoderDecoder')\n")
    assert benchmark.main([str(path), *args]) == 1
    assert words in capsys.readouterr().err
