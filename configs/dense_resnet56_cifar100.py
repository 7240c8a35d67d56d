# The dense start on CIFAR-100: ResNet-56, 200 epochs. The data downloads itself to data/cifar100. Schedule and decay
# are those of the stock config for ResNet-50; batch size and network are our choice.
#   python tools/train.py configs/dense_resnet56_cifar100.py
_base_ = 'mmpretrain::resnet/resnet50_8xb16_cifar100.py'
custom_imports = dict(imports=['mmprune_gates'])
model = dict(
    backbone=dict(_delete_=True, type='mmprune_gates.CifarResNet', depth=56),
    head=dict(in_channels=64))
train_dataloader = dict(batch_size=128)  # on one GPU: the stock config has 16 on each of 8
default_hooks = dict(checkpoint=dict(interval=20))
