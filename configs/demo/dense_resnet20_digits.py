# The dense start on handwritten digits: ResNet-20 for small images, 8 x 8 pixels. Write the data set first:
#   python tools/dataset_converters/digits_data.py data/digits
_base_ = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'
custom_imports = dict(imports=['mmprune_gates'])

# ---- data: an image folder, read by the stock dataset class
data_root = 'data/digits'
data_preprocessor = dict(mean=[77.8] * 3, std=[95.9] * 3)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomCrop', crop_size=8, padding=1),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    _delete_=True,
    batch_size=32,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='CustomDataset', data_root=data_root, data_prefix='train', pipeline=train_pipeline))
val_dataloader = dict(
    _delete_=True,
    batch_size=50,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CustomDataset', data_root=data_root, data_prefix='val', pipeline=test_pipeline))
test_dataloader = val_dataloader

# ---- model
model = dict(
    backbone=dict(_delete_=True, type='mmprune_gates.CifarResNet', depth=20),
    head=dict(in_channels=64))

# ---- schedule
max_epochs = 20
optim_wrapper = dict(optimizer=dict(lr=0.1, weight_decay=5e-4))
param_scheduler = dict(
    _delete_=True, type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs, convert_to_iter_based=True)
train_cfg = dict(max_epochs=max_epochs, val_interval=5)
default_hooks = dict(
    logger=dict(interval=20), checkpoint=dict(interval=max_epochs))
randomness = dict(seed=0)
