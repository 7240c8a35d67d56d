"""Fixtures that several files use: a tiny data set of the real format, a tiny gated run on it."""

import copy
import gc
import uuid
from functools import cache
from pathlib import Path

import config_text  # noqa: F401  (before mmengine takes what it replaces)

# isort: split
import mmprune_gates  # noqa: F401  (cures come before the imports below)

# isort: split
import pytest
import torch
from demo_data import generate_voc
from hypothesis import settings
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmprune_gates import cli
from mmprune_gates.engine import builders

CONFIGS = Path(__file__).parents[1] / 'configs'
settings.register_profile('repeatable', deadline=None, derandomize=True, database=None)
settings.load_profile('repeatable')


def opened(path):
    """A config as the command lines read it; to be changed at will."""
    return copy.deepcopy(read(path))


@cache
def read(path):
    """The same, read once: finding stock configs takes a third of a second."""
    return cli.runner_config(cli.runner_parser('').parse_args([str(path)]))


def pytest_runtest_setup(item):
    """Tests marked so need a GPU."""
    if item.get_closest_marker('gpu') and not torch.cuda.is_available():
        pytest.skip('there is no GPU')


@pytest.fixture(autouse=True, scope='session')
def old_objects_stay():
    """Stock datasets collect garbage when they are built; what lives as long as the suite is not looked at."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope='session')
def traced_once():
    """Many runs train the same stock model: its graph is traced once, and anew for each that differs in anything."""
    trace, graphs = builders.trace, {}

    def remembered(model, *options):
        if not type(model).__module__.startswith(('mmseg.', 'mmpretrain.')):
            return trace(model, *options)
        switches = [getattr(module, 'with_cp', None) for module in model.modules()]
        key = repr((model, switches, options))
        return graphs[key] if key in graphs else graphs.setdefault(key, trace(model, *options))

    builders.trace = remembered
    yield
    builders.trace = trace


@pytest.fixture(scope='session')
def scenes(tmp_path_factory):
    """Folder of a dozen images in VOC2012 format."""
    root = tmp_path_factory.mktemp('scenes')
    generate_voc(root, num_train=12, num_val=4, size=(32, 48))
    return root / 'VOC2012'


@pytest.fixture(scope='session')
def sbd(scenes, tmp_path_factory):
    """Folder of the same images in SBD's layout, masks converted."""
    root = tmp_path_factory.mktemp('sbd')
    for name, source in (('img', 'JPEGImages'), ('masks', 'SegmentationClass')):
        (root / name).symlink_to(scenes / source)
    for split in ('train', 'val'):
        (root / f'{split}.txt').symlink_to(scenes / 'ImageSets' / 'Segmentation' / f'{split}.txt')
    return root


@pytest.fixture(scope='session')
def tiny_config(scenes):
    """A function: config of the demo with few channels, small images and few iterations."""

    def make(work_dir, name='demo/gdp_deeplabv3plus_scenes.py', iterations=12, **overrides):
        config = Config.fromfile(CONFIGS / name)
        config.work_dir = str(work_dir)
        for part in ('train', 'val', 'test'):
            config[f'{part}_dataloader'].dataset.data_root = str(scenes)
            config[f'{part}_dataloader'].batch_size = 2
        small = {
            'load_from': None,
            'experiment_name': uuid.uuid4().hex,  # hubs and visualizers are shared by name within a process
            'visualizer.name': uuid.uuid4().hex,
            'model.data_preprocessor.size': (32, 48),
            'model.backbone.base_channels': 8,
            'model.backbone.stem_channels': 8,
            'model.decode_head.in_channels': 64,
            'model.decode_head.channels': 16,
            'model.decode_head.c1_in_channels': 8,
            'model.decode_head.c1_channels': 4,
            'model.auxiliary_head.in_channels': 32,
            'model.auxiliary_head.channels': 8,
            'train_cfg.max_iters': iterations,
            'train_cfg.val_interval': 1000,
            'default_hooks.checkpoint.interval': iterations,
            'default_hooks.logger.interval': 1,
        }
        config.merge_from_dict({**small, **overrides})
        for hook in config.get('custom_hooks') or []:
            if 'target_macs' in hook:
                hook.shrink = False  # most tests look at the whole model
        return config

    return make


@pytest.fixture(scope='session')
def gated_run(tmp_path_factory, tiny_config):
    """(config, checkpoint) of a finished gated run; not to be changed."""
    torch.set_num_threads(1)
    config = tiny_config(tmp_path_factory.mktemp('gated'))
    config.custom_hooks[0].steps = 2
    runner = Runner.from_cfg(config)
    runner.train()
    path = Path(config.work_dir) / 'gated.py'
    config.dump(path)
    return path, Path(config.work_dir) / 'iter_12.pth'


@HOOKS.register_module()
class EarlyEnd(Hook):
    """Ends a run after ``at`` iterations, as if it had been killed right after a checkpoint."""

    def __init__(self, at):
        self.at = at

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        """Stop the loop."""
        if runner.iter + 1 == self.at:
            runner.train_loop.stop_training = True


@pytest.fixture
def one_rank():
    """A process group of this process alone."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
