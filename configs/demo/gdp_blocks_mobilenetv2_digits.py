# Gates on whole residual blocks and nothing else: MobileNetV2 on digits, trained and pruned in one run from scratch.
_base_ = './gdp_blocks_resnet50_digits.py'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomCrop', crop_size=8, padding=1),
    dict(type='Resize', scale=32),  # five times half the size, and something is left
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=32),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
model = dict(
    input_shape=(3, 32, 32),
    backbone=dict(_delete_=True, type='MobileNetV2', widen_factor=1.0),
    head=dict(in_channels=1280))
custom_hooks = [dict(type='mmprune_gates.PolarizationHook', target_macs=0.7)]
