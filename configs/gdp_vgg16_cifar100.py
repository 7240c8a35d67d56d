# GDP on VGG-16, CIFAR-100: goes on from the dense start and prunes while it trains, to a quarter of the MACs.
#   python tools/train.py configs/gdp_vgg16_cifar100.py
#   python tools/slim.py configs/gdp_vgg16_cifar100.py work_dirs/gdp_vgg16_cifar100/epoch_200.pth OUT_DIR
_base_ = './dense_vgg16_cifar100.py'
model = dict(
    type='mmprune_gates.GatedModel', architecture='ImageClassifier', input_shape=(3, 32, 32),
    gates=dict(type='PolarizationGate'))
# target_macs: kept MACs / original MACs at input_shape; our choice, that of Gate Decorator
custom_hooks = [dict(type='mmprune_gates.PolarizationHook', target_macs=0.25)]
load_from = 'work_dirs/dense_vgg16_cifar100/epoch_200.pth'
optim_wrapper = dict(optimizer=dict(lr=0.02))
# the weights need a learning rate that is still high when the gates settle: no steps
param_scheduler = dict(
    _delete_=True, type='CosineAnnealingLR', by_epoch=True, begin=0, end=200, convert_to_iter_based=True)
