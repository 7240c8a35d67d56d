"""Random labels: stock heads of every kind take them, and they are the same every time."""

import mmprune_gates  # noqa: F401  (cures come before the imports below)

# isort: split
import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope

from mmprune_gates.engine.samples import random_labels

pytestmark = pytest.mark.models
CLASSIFIER = dict(
    type='ImageClassifier', backbone=dict(type='ResNet_CIFAR', depth=18), neck=dict(type='GlobalAveragePooling')
)
SCORES = dict(type='MultiLabelLinearClsHead', num_classes=4, in_channels=512)
MODEL_OF = {
    'edges': ('mmseg', "_base_ = 'mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py'"),
    'two heads': ('mmseg', "_base_ = 'mmseg::point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024.py'"),
    'a head in a head': ('mmseg', "_base_ = 'mmseg::knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512.py'"),
    'classes': ('mmpretrain', f'model = {CLASSIFIER | dict(head=dict(SCORES, type="LinearClsHead"))}'),
    'scores': ('mmpretrain', f'model = {CLASSIFIER | dict(head=SCORES)}'),
}


@pytest.mark.parametrize('kind', MODEL_OF)
def test_a_stock_model_has_a_finite_loss(kind):
    scope, text = MODEL_OF[kind]
    init_default_scope(scope)
    config = Config.fromstring(text, '.py').model
    for key in ('backbone', 'decode_head'):
        if isinstance(config.get(key), dict):
            config[key].pop('init_cfg', None)
    config.pop('pretrained', None)
    model = revert_sync_batchnorm(MODELS.build(config)).train()
    images = torch.randn(2, 3, 64, 64)
    losses = model(images, random_labels(config, images), mode='loss')
    assert model.parse_losses(losses)[0].isfinite()


def test_labels_are_the_same_every_time():
    config, images = dict(head=dict(type='LinearClsHead', num_classes=1000)), torch.zeros(3, 3, 8, 8)
    first, second = (torch.cat([sample.gt_label for sample in random_labels(config, images)]) for _ in range(2))
    assert torch.equal(first, second) and len(first.unique()) > 1
