# The dense start of the demo: a narrow DeepLabV3+ on drawn scenes in VOC2012 format. Write the data set first:
#   python tools/dataset_converters/demo_data.py data/demo_scenes
_base_ = 'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-20k_voc12aug-512x512.py'
custom_imports = dict(imports=['mmprune_gates'])

# ---- data: six of the 21 classes, read by the stock dataset class
data_root = 'data/demo_scenes/VOC2012'
crop_size = (64, 96)
metainfo = dict(
    classes=('background', 'bottle', 'car', 'cat', 'person', 'sheep', 'tvmonitor'),
    palette=[[0, 0, 0], [128, 0, 128], [128, 128, 128], [64, 0, 0], [192, 128, 128], [128, 64, 0], [0, 64, 128]])
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
data_prefix = dict(img_path='JPEGImages', seg_map_path='SegmentationClass')
train_dataloader = dict(
    _delete_=True,
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='PascalVOCDataset',
        data_root=data_root,
        data_prefix=data_prefix,
        ann_file='ImageSets/Segmentation/train.txt',
        metainfo=metainfo,
        pipeline=train_pipeline))
val_dataloader = dict(
    _delete_=True,
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='PascalVOCDataset',
        data_root=data_root,
        data_prefix=data_prefix,
        ann_file='ImageSets/Segmentation/val.txt',
        metainfo=metainfo,
        pipeline=test_pipeline))
test_dataloader = val_dataloader

# ---- model: as the stock one, on ResNetV1c-18 and with few channels; BN because there is no GPU to synchronise
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    pretrained=None,
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        depth=18,
        base_channels=24,
        stem_channels=24,
        strides=(1, 2, 1, 1),
        norm_cfg=norm_cfg),
    decode_head=dict(
        in_channels=192,
        channels=48,
        dilations=(1, 2, 4, 6),
        c1_in_channels=24,
        c1_channels=12,
        num_classes=7,
        norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=96, channels=24, num_classes=7, norm_cfg=norm_cfg))

# ---- schedule
max_iters = 2000
optim_wrapper = dict(
    _delete_=True, type='OptimWrapper', optimizer=dict(type='AdamW', lr=2e-2, weight_decay=0.01), clip_grad=None)
optimizer = None
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=100, end=max_iters),
]
train_cfg = dict(max_iters=max_iters, val_interval=500)
default_hooks = dict(
    logger=dict(interval=25), checkpoint=dict(interval=max_iters))
randomness = dict(seed=0)
