"""Every config for real data: opened, checked, built and trained for a step on tiny data of the real format."""

from __future__ import annotations

import copy
import shutil
import uuid
from pathlib import Path

import pytest
import real_formats
import torch
from conftest import CONFIGS, opened
from demo_data import generate_voc
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from mmpretrain.datasets import CIFAR10, CIFAR100
from recipes import HEADER, Graphs, identity, page, rows, source

from mmprune_gates.engine.datasets import check_datasets, leaves
from mmprune_gates.engine.model_config import without_pretrained
from mmprune_gates.gates import gates_of, has_gates

pytestmark = pytest.mark.models
PATHS = [path for path in sorted(CONFIGS.rglob('*.py')) if path.parent.name != 'demo']
VARIANTS = [path for path in PATHS if '_macs' in path.stem]
RECIPES = [path for path in PATHS if path not in VARIANTS]
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
SIDE = 64  # of training crops, for all but CIFAR
SHRUNK = {  # transform -> its sizes
    'RandomResize': dict(scale=(2 * SIDE, SIDE)),
    'RandomCrop': dict(crop_size=(SIDE, SIDE)),
    'Pad': dict(size=(SIDE, SIDE)),
    'Resize': dict(scale=(2 * SIDE, SIDE)),
    'RandomResizedCrop': dict(scale=SIDE),
    'ResizeEdge': dict(scale=SIDE),
    'CenterCrop': dict(crop_size=SIDE),
}
ONE_EACH = dict(_delete_=True, depths=[1, 1, 1, 1], channels=[96, 192, 384, 768])
QUARTERED = ('in_channels', 'channels', 'c1_in_channels', 'c1_channels')  # of a head, with the ResNet before it
SMALLER = {  # backbone -> fewer layers or channels of the same kind, where that saves much time
    'CifarResNet': {'backbone.depth': 20},
    'ConvNeXt': {'backbone.arch': ONE_EACH, 'decode_head.channels': 64, 'auxiliary_head.channels': 64},
    'HRNet': {'backbone.extra.stage3.num_modules': 1, 'backbone.extra.stage4.num_modules': 1},
    'MixVisionTransformer': {'backbone.num_layers': [1, 1, 1, 1]},
    'ResNet': {'backbone.base_channels': 16, 'backbone.stem_channels': 16},
    'ResNetV1c': {'backbone.base_channels': 16, 'backbone.stem_channels': 16},
}
# A Tock and a Tick of one step each, which closes a fifth of the filters.
CYCLE = dict(by_epoch=False, tick=1, tock=1, ticks=1, fraction=0.2)


@pytest.fixture(scope='module')
def roots(sbd, tmp_path_factory):
    """``data_root`` of the configs -> where tiny data of that format is; the stock classes know its checksums."""
    base = tmp_path_factory.mktemp('data')
    found = {'data/sbd/dataset': sbd, 'data/VOCdevkit/VOC2012': generate_voc(base, num_train=2, num_val=2, num_aug=2)}
    writers = {
        'data/CUB_200_2011': real_formats.write_cub,
        'data/imagenet': real_formats.write_imagenet,
        'data/cityscapes': real_formats.write_cityscapes,
        'data/ade/ADEChallengeData2016': real_formats.write_ade20k,
        'data/cifar10': real_formats.write_cifar10,
        'data/cifar100': real_formats.write_cifar100,
    }
    lists = {}
    for name, write in writers.items():
        found[name] = base / Path(name).name
        lists[name] = write(found[name])
    with pytest.MonkeyPatch.context() as patch:
        for kind, name in ((CIFAR10, 'data/cifar10'), (CIFAR100, 'data/cifar100')):
            for key, value in lists[name].items():
                patch.setattr(kind, key, value)
        yield found


def on_tiny_data(config, roots):
    """Let all loaders read the tiny data, with small crops where it has no fixed size."""
    for loader in LOADERS:
        config[loader].update(num_workers=0, persistent_workers=False, batch_size=2)
        for _, dataset in leaves(loader, config[loader].dataset):
            dataset.data_root = str(roots[dataset.data_root.rstrip('/')])
            if dataset.type.startswith('CIFAR'):
                dataset.download = False
                continue
            for transform in dataset.pipeline:
                transform.update(SHRUNK.get(transform.type, {}))


def make_smaller(config):
    """Let the model have fewer layers or channels; what it is built of stays."""
    kind = config.model.backbone.type.rpartition('.')[2]
    smaller = copy.deepcopy(SMALLER.get(kind, {}))  # merging takes _delete_ out
    config.merge_from_dict({f'model.{name}': value for name, value in smaller.items()})
    if kind.startswith('ResNet'):
        for name in ('head', 'decode_head', 'auxiliary_head'):
            head = config.model.get(name) or {}
            head.update({key: head[key] // 4 for key in QUARTERED if key in head})


def for_one_step(config):
    """Build at the size of the crops, without pretrained weights, and end after a step (a Tock and a Tick: two)."""
    config.model = without_pretrained(config.model.to_dict())
    make_smaller(config)
    if config.default_scope == 'mmseg':
        config.model.data_preprocessor.size = (SIDE, SIDE)
    elif config.model.get('input_shape', (3, 32, 32))[-1] != 32:
        config.model.input_shape = (3, SIDE, SIDE)
    decorator = config.model.get('gates', {}).get('type') == 'DecoratorGate'
    if decorator:
        config.custom_hooks[0].update(CYCLE)
    config.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2 if decorator else 1, val_interval=10)
    config.default_hooks.checkpoint.save_last = False
    config.param_scheduler = config.load_from = None
    if config.optim_wrapper.get('type') == 'AmpOptimWrapper':  # needs a GPU
        config.optim_wrapper.type = 'OptimWrapper'
        config.optim_wrapper.pop('loss_scale')
    for part in ('val', 'test'):
        config[f'{part}_cfg'] = config[f'{part}_evaluator'] = config[f'{part}_dataloader'] = None
    config.experiment_name = config.visualizer.name = uuid.uuid4().hex  # shared by name within a process


@pytest.mark.slow
@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_it_trains_on_data_of_the_real_format(path, roots, tmp_path):
    torch.set_num_threads(1)
    config = opened(path)
    config.work_dir = str(tmp_path)
    on_tiny_data(config, roots)
    check_datasets(config, LOADERS)
    validation = config.val_dataloader.dataset
    for_one_step(config)
    runner = Runner.from_cfg(config)
    sample = DATASETS.build(validation)[0]
    assert set(sample) == {'inputs', 'data_samples'} and len(sample['inputs']) == 3
    before = {name: value.detach().clone() for name, value in runner.model.named_parameters()}
    runner.train()
    moved = [name for name, value in runner.model.named_parameters() if not torch.equal(value, before[name])]
    assert moved and all(value.isfinite().all() for value in runner.model.parameters())
    assert has_gates(runner.model) == (not path.stem.startswith('dense_'))
    if has_gates(runner.model):
        check_gates(runner.model, config.custom_hooks[0])


def check_gates(model, hook):
    """Some channels are closed; of a method that ends with the run, so many that the target is met."""
    gates = gates_of(model)
    ratio = gates.whole.macs(gates.kept_of_whole(gates.kept())) / gates.whole.macs()
    assert ratio <= hook.target_macs if hook.type.endswith('PolarizationHook') else ratio < 1


@pytest.mark.parametrize('path', VARIANTS, ids=lambda path: path.stem)
def test_a_variant_differs_from_its_base_in_the_target_alone(path):
    name, _, percent = path.stem.partition('_macs')
    variant, base = (opened(path.with_stem(stem)).to_dict() for stem in (path.stem, name))
    assert variant['custom_hooks'][0].pop('target_macs') == int(percent) / 100
    assert base['custom_hooks'][0].pop('target_macs') == 0.4
    assert variant.pop('work_dir') != base.pop('work_dir')
    assert variant == base


def test_a_damaged_cifar_file_is_refused(roots, tmp_path):
    copy_of = tmp_path / 'cifar100'
    shutil.copytree(roots['data/cifar100'], copy_of)
    assert len(CIFAR100(data_root=str(copy_of), split='train', download=False)) == real_formats.IMAGES
    with (copy_of / 'cifar-100-python' / 'train').open('ab') as file:
        file.write(b'0')
    with pytest.raises(RuntimeError, match='Cannot find CIFAR100'):
        CIFAR100(data_root=str(copy_of), split='train', download=False)


@pytest.mark.slow
def test_the_table_names_every_config_with_its_target():
    text = (CONFIGS / 'README.md').read_text()
    lines = [line for line in text.splitlines() if line.startswith('| `')]
    cells = [line.strip('| ').split(' | ') for line in lines]
    stated = [[*row[: len(HEADER)], row[-1]] for row in cells]
    assert stated == [[*identity(path, opened(path)), source(path)] for path in PATHS]
    assert page(cells) == text


@pytest.mark.slow
@pytest.mark.parametrize(
    'name',
    ['gdp_resnet56_cifar10', 'gdp_vgg16m_cub', 'gbn_mobilenetv2_imagenet', 'gdp_deeplabv3plus_voc'],
)
def test_the_costs_in_the_table_are_those_of_the_model(name):
    (row,) = rows([CONFIGS / f'{name}.py'], Graphs())
    assert f'| {" | ".join(row)} |' in (CONFIGS / 'README.md').read_text()
