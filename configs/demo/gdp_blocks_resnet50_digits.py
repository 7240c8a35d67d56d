# Gates on whole residual blocks and nothing else: ResNet-50 on digits, trained and pruned in one run from scratch.
_base_ = './dense_resnet20_digits.py'
max_epochs = 20
model = dict(
    type='mmprune_gates.GatedModel', architecture='ImageClassifier', input_shape=(3, 8, 8), units='blocks',
    backbone=dict(_delete_=True, type='ResNet_CIFAR', depth=50, num_stages=4, out_indices=(3, ), style='pytorch'),
    head=dict(in_channels=2048))
optim_wrapper = dict(optimizer=dict(lr=0.05))
custom_hooks = [dict(type='mmprune_gates.PolarizationHook', target_macs=0.5)]
param_scheduler = dict(end=max_epochs)
train_cfg = dict(max_epochs=max_epochs, val_interval=5)
default_hooks = dict(checkpoint=dict(interval=max_epochs))
