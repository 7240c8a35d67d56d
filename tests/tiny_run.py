"""The smallest gated run there is, for tests that start tools hundreds of times: a net, its data and its config."""

from __future__ import annotations

import importlib.util
import uuid
from pathlib import Path

import mmprune_gates  # noqa: F401  (cures come before the imports below)

# isort: split
from mmengine.registry import MODELS
from PIL import Image
from torch import nn

ROOT = Path(__file__).parents[1]
CONFIG = """
default_scope = 'mmpretrain'
custom_imports = dict(imports=['mmprune_gates', 'tiny_run'])
experiment_name = '{name}'
model = dict(
    type='mmprune_gates.GatedModel', architecture='ImageClassifier', input_shape=(3, 16, 16),
    backbone=dict(type='mmengine.TinyNet', width=8), neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=8, topk=(1,)),
    data_preprocessor=dict(num_classes=2, mean=[127] * 3, std=[64] * 3))
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(type='CustomDataset', data_prefix='{images}', pipeline=pipeline))
test_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CustomDataset', data_prefix='{images}', pipeline=pipeline))
test_evaluator, test_cfg = dict(type='Accuracy', topk=(1,)), dict()
train_cfg = dict(by_epoch=False, max_iters=4)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01))
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', interval=2, by_epoch=False), logger=dict(type='LoggerHook', interval=1))
visualizer = dict(type='UniversalVisualizer', name='{name}')
custom_hooks = [dict(type='mmprune_gates.PolarizationHook', target_macs=0.6, steps=1),
                dict(type='mmprune_gates.GateRecordHook', interval=1)]
randomness = dict(seed=0)
"""
DECORATOR = """
model['gates'] = dict(type='DecoratorGate')
custom_hooks = [dict(type='mmprune_gates.GateDecoratorHook', target_macs=0.6, by_epoch=False)]
"""
# A run whose checkpoint holds the whole model, closed channels included.
UNSHRUNK = 'custom_hooks[0].update(shrink=False, end=0.5, settle=0.55)'
DENSE = """
model['type'] = model.pop('architecture')
del model['input_shape']
custom_hooks = []
"""


@MODELS.register_module(force=True)
class TinyNet(nn.Module):
    """A stem and a residual block."""

    def __init__(self, width):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.branch = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        return ((x + self.branch(x)).relu(),)


def load_tool(name):
    """A tool, whatever else has its name."""
    spec = importlib.util.spec_from_file_location(f'tool_{name}', ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOLS = {name: load_tool(name).main for name in ('train', 'test', 'slim', 'channels')}


def draw_images(folder, size=(16, 16), count=3):
    """Two classes of pictures."""
    for name in 'ab':
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new('RGB', size, (number * 60, 20 + 100 * (name == 'b'), 60)).save(folder / name / f'{number}.png')
    return folder


def write_config(path, images, *changes):
    """A config file with changes, lines of Python, at its end."""
    text = CONFIG.replace('{images}', str(images)).replace('{name}', uuid.uuid4().hex)
    path.write_text('\n'.join([text, *changes]) + '\n')
    return str(path)
