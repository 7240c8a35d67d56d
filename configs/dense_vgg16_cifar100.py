# The same start with VGG-16: 13 convolutions with batch norm, average pooling, one linear layer.
#   python tools/train.py configs/dense_vgg16_cifar100.py
_base_ = './dense_resnet56_cifar100.py'
model = dict(
    backbone=dict(_delete_=True, type='VGG', depth=16, norm_cfg=dict(type='BN'), num_classes=-1),
    head=dict(in_channels=512))
