"""Gated configs of four transformers that people train, for short runs on the demo's data.

    python tools/dev/transformer_configs.py OUT_DIR  # writes OUT_DIR/swin.py, OUT_DIR/swin_dense.py, ...

Run it, and what it writes, where the demo's data sets are: ``data/demo_scenes`` and ``data/digits``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mmprune_gates import cli  # cures come before the imports below

# isort: split
from mmengine.config import Config

from mmprune_gates.channels.trace import ATTENTION
from mmprune_gates.cli.arguments import LOADERS
from mmprune_gates.engine.model_config import stock_model

DEMO = Path(__file__).resolve().parents[2] / 'configs' / 'demo'
SEGMENTOR = dict(
    pretrained=None,
    decode_head=dict(num_classes=7),
    data_preprocessor=dict(size=(64, 96)),
    test_cfg=dict(_delete_=True, mode='whole'),
)
WITH_AUX = dict(SEGMENTOR, auxiliary_head=dict(num_classes=7))
CLASSIFIER = dict(
    input_shape=(3, 8, 8),
    backbone=dict(img_size=8, patch_size=2),
    head=dict(num_classes=10),
    train_cfg=dict(_delete_=True),
)
# Name -> stock config, changes of its model.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    'segformer': (
        'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
        dict(SEGMENTOR, backbone=dict(init_cfg=None)),
    ),
    'swin': (
        'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',
        dict(WITH_AUX, backbone=dict(init_cfg=None)),
    ),
    'vit': (
        'mmseg::vit/vit_deit-s16_upernet_8xb2-160k_ade20k-512x512.py',
        dict(WITH_AUX, backbone=dict(img_size=(64, 96))),
    ),
    'deit': ('mmpretrain::deit/deit-tiny_4xb256_in1k.py', CLASSIFIER),
}


@cli.reports_errors
def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = cli.plain_parser(__doc__)
    parser.add_argument('out_dir', type=Path, metavar='OUT_DIR')
    parser.add_argument('--attention', default='both', choices=ATTENTION, help='what attention loses')
    parser.add_argument('--target', type=float, default=0.3, help='share of the MACs that is kept')
    parser.add_argument('--iterations', type=int, default=200)
    args = parser.parse_args(argv)
    for name in MODELS:
        config = gated(name, args.attention, args.iterations, target_macs=args.target)
        cli.write_text(args.out_dir / f'{name}.py', config.pretty_text)
        config.model, config.custom_hooks = stock_model(config.model), []
        cli.write_text(args.out_dir / f'{name}_dense.py', config.pretty_text)
    return 0


def gated(name: str, attention: str, iterations: int, **hook: Any) -> Config:
    """The gated config of a model, from random weights, on the demo's data.

    Args:
        name: Name in :data:`MODELS`.
        attention: What attention loses.
        iterations: Length of the run.
        **hook: Arguments of the pruning hook.
    """
    base, changes = MODELS[name]
    config = Config.fromstring(f'_base_ = {base!r}\nmodel = {changes!r}', '.py')
    is_classifier = name == 'deit'
    demo = Config.fromfile(DEMO / ('dense_resnet20_digits.py' if is_classifier else 'dense_deeplabv3plus_scenes.py'))
    config.model.update(type='mmprune_gates.GatedModel', architecture=config.model.type, attention=attention)
    config.custom_imports = dict(imports=['mmprune_gates'])
    for loader in LOADERS:
        config[loader] = demo[loader]
    if is_classifier:
        config.data_preprocessor = demo.data_preprocessor
    config.train_dataloader.batch_size = 64 if is_classifier else 4
    config.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=5e-4))
    config.param_scheduler = []
    config.train_cfg = dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=iterations)
    config.default_hooks = dict(
        checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=iterations),
        logger=dict(type='LoggerHook', interval=20, log_metric_by_epoch=False),
    )
    config.custom_hooks = [{'type': 'mmprune_gates.PolarizationHook', 'steps': 5, **hook}]
    return config


if __name__ == '__main__':
    sys.exit(main())
