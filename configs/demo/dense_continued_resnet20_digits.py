# The dense reference on digits: goes on from the dense start for exactly as long as the GDP run does, with the same
# schedule, so that neither gains from longer training.
_base_ = './dense_resnet20_digits.py'
load_from = 'work_dirs/dense_resnet20_digits/epoch_20.pth'
max_epochs = 40
optim_wrapper = dict(optimizer=dict(lr=0.02))
param_scheduler = dict(end=max_epochs)
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
default_hooks = dict(checkpoint=dict(interval=max_epochs))
