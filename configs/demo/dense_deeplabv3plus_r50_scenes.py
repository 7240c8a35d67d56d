# The demo at full size, for a GPU: the stock DeepLabV3+-R50 from random weights, on drawn scenes of 512 x 512 pixels.
#   python tools/dataset_converters/demo_data.py data/large_scenes --num-train 600 --num-val 100 --size 512 512
_base_ = './dense_deeplabv3plus_scenes.py'
crop_size = (512, 512)
data_root = 'data/large_scenes/VOC2012'
train_dataloader = dict(batch_size=16, num_workers=8, persistent_workers=True, dataset=dict(data_root=data_root))
val_dataloader = dict(batch_size=16, num_workers=8, persistent_workers=True, dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(depth=50, base_channels=64, stem_channels=64, strides=(1, 2, 1, 1)),
    decode_head=dict(
        in_channels=2048, channels=512, dilations=(1, 12, 24, 36), c1_in_channels=256, c1_channels=48),
    auxiliary_head=dict(in_channels=1024, channels=256))

# ---- schedule
max_iters = 400
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=False, begin=50, end=max_iters)]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(checkpoint=dict(interval=max_iters))
