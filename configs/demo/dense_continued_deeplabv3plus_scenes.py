# The dense reference of the demo: goes on from the dense start for exactly as long as the GDP run does, with the
# same schedule, so that neither gains from longer training.
_base_ = './dense_deeplabv3plus_scenes.py'
load_from = 'work_dirs/demo/start/last.pth'  # tools/dev/demo.py sets it
max_iters = 3000
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=50, end=max_iters),
]
optim_wrapper = dict(optimizer=dict(lr=1e-2))
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(checkpoint=dict(interval=max_iters))
