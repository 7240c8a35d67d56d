"""The demo from end to end, with a handful of iterations."""

import json
import subprocess
import sys
from pathlib import Path

from latency import compare
from PIL import Image
from torch import nn, zeros

DEMO = Path(__file__).parents[1] / 'tools' / 'dev' / 'demo.py'
KEYS = {
    *('miou_dense', 'miou_gated', 'miou_slim', 'macs_dense', 'macs_slim', 'macs_removed', 'target_removed'),
    *('params_dense', 'params_slim', 'latency_ratio', 'parity_error', 'gates_zero', 'gates_open', 'gates_between'),
}


def test_demo_writes_summary_and_picture(tmp_path, scenes):
    data = ['--data', str(scenes.parent), '--num-train', '12', '--num-val', '4', '--size', '32', '48']
    few = ['train_cfg.max_iters=6', 'default_hooks.checkpoint.interval=6', 'train_dataloader.batch_size=2']
    command = [sys.executable, str(DEMO), *data, '--work-dir', 'out', '--cfg-options', *few]
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


def test_latency_is_compared_in_pairs():
    class Model(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.conv = nn.Conv2d(8, width, 3)

        def forward(self, x, mode):
            return self.conv(x)

    found = compare(Model(256), Model(4), zeros(1, 8, 64, 64), pairs=4, repeats=2)
    assert found['pairs'] == 4 and found['ratio_quartiles'][0] <= found['ratio'] <= found['ratio_quartiles'][1]
    assert found['ratio'] > 1
