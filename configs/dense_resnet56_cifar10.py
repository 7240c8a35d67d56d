# The dense start on CIFAR-10: ResNet-56, 200 epochs. The data downloads itself to data/cifar10. The schedules of the
# papers' own baselines are not known to us; batch size, learning rate and decay are our choice.
#   python tools/train.py configs/dense_resnet56_cifar10.py
_base_ = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'
custom_imports = dict(imports=['mmprune_gates'])
model = dict(
    backbone=dict(_delete_=True, type='mmprune_gates.CifarResNet', depth=56),
    head=dict(in_channels=64))
train_dataloader = dict(batch_size=128)  # on one GPU: the stock config has 16 on each of 8
optim_wrapper = dict(optimizer=dict(lr=0.1, weight_decay=5e-4))
default_hooks = dict(checkpoint=dict(interval=20))
