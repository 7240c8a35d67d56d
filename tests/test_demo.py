"""The demo from end to end, with a handful of iterations."""

import json
import subprocess
import sys
from pathlib import Path

import latency
import pytest
from latency import compare
from PIL import Image
from tiny_run import write_config
from torch import nn, zeros

from mmprune_gates.budget.latency_table import BACKENDS, Target
from mmprune_gates.timing.table import backend_of

DEMO = Path(__file__).parents[1] / 'tools' / 'dev' / 'demo.py'
KEYS = {
    *('miou_dense', 'miou_gated', 'miou_slim', 'macs_dense', 'macs_slim', 'macs_removed', 'target_removed'),
    *('params_dense', 'params_slim', 'latency_ratio', 'latency_ratio_onnx', 'parity_error'),
    *('gates_zero', 'gates_open', 'gates_between'),
}


@pytest.mark.slow
def test_demo_writes_summary_and_picture(tmp_path, scenes):
    data = ['--data', str(scenes.parent), '--num-train', '12', '--num-val', '4', '--size', '32', '48']
    few = ['train_cfg.max_iters=6', 'default_hooks.checkpoint.interval=6', 'train_dataloader.batch_size=2']
    command = [sys.executable, str(DEMO), *data, '--work-dir', 'out', '--pairs', '4', '--cfg-options', *few]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / 'out' / 'summary.json').read_text())
    assert KEYS <= summary.keys()
    assert abs(summary['macs_removed'] - summary['target_removed']) <= 0.01
    assert summary['parity_error'] <= 1e-5
    assert summary['gates_between'] == 0 and summary['gates_zero'] > 0
    assert abs(summary['miou_slim'] - summary['miou_gated']) <= 0.02
    with Image.open(tmp_path / 'out' / 'summary.png') as picture:
        assert min(picture.size) > 500
    assert sorted(path.name for path in tmp_path.iterdir()) == ['out']  # nothing outside the work directory


@pytest.mark.parametrize('backend', BACKENDS)
def test_latency_is_compared_in_pairs(backend):
    class Model(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.conv = nn.Conv2d(8, width, 3)

        def forward(self, x, mode):
            return self.conv(x)

    timed = backend_of(Target(backend))
    wide, narrow = (timed.call(Model(width), zeros(1, 8, 64, 64)) for width in (256, 4))
    found = compare(wide, narrow, pairs=4, now=timed.now, repeats=2)
    assert found['pairs'] == 4 and found['ratio_quartiles'][0] <= found['ratio'] <= found['ratio_quartiles'][1]
    assert found['ratio'] > 1


def test_latency_of_two_configs_in_both_backends(tmp_path, capsys):
    config = write_config(tmp_path / 'net.py', tmp_path, "model.update(type='mmprune_gates.SlimModel', widths=0.5)")
    figures = tmp_path / 'figures.json'
    assert latency.main([config, config, '--pairs', '3', '--backend', 'both', '--json', str(figures)]) == 0
    printed = capsys.readouterr().out
    assert 'torch: first' in printed and 'onnxruntime: first' in printed
    both = json.loads(figures.read_text())
    assert list(both) == ['torch', 'onnxruntime'] and all(found['first_ms'] > 0 for found in both.values())
    assert latency.main([config, config, '--pairs', '3', '--json', str(figures)]) == 0
    assert json.loads(figures.read_text()).keys() == both['torch'].keys()
    with pytest.raises(SystemExit, match='2'):
        latency.main([config, config, '--backend', 'onnxruntime', '--device', 'cuda'])
    assert 'onnxruntime is timed on the CPU' in capsys.readouterr().err
