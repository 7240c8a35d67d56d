# Gate Decorator on VGG-16, CIFAR-10: from the dense start to 10 % of the MACs, as in the authors' log.
#   python tools/train.py configs/gbn_vgg16_cifar10.py
#   python tools/slim.py configs/gbn_vgg16_cifar10.py work_dirs/gbn_vgg16_cifar10/epoch_400.pth OUT_DIR
_base_ = './dense_vgg16_cifar10.py'
model = dict(
    type='mmprune_gates.GatedModel', architecture='ImageClassifier', input_shape=(3, 32, 32),
    gates=dict(type='DecoratorGate'))
# fraction: that of the authors' CIFAR run (the paper has 0.01 for VGG); the rest as for ResNet-56
custom_hooks = [
    dict(
        type='mmprune_gates.GateDecoratorHook', target_macs=0.1, fraction=0.005, tick=1, tock=10, ticks=10,
        tick_lr=1e-3, tock_lr=(1e-3, 1e-2), penalty=1e-3)]
load_from = 'work_dirs/dense_vgg16_cifar10/epoch_200.pth'
param_scheduler = None  # the hook sets the learning rate
# About (1 - sqrt(0.1)) / 0.005 = 137 Ticks and 14 Tocks, 277 epochs, if all layers shrink alike; more if the last ones,
# which are wide and cost few MACs, shrink most. 40 epochs of fine-tune are left even after 175 Ticks.
train_cfg = dict(max_epochs=400)
