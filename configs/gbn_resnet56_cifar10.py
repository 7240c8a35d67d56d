# Gate Decorator on ResNet-56, CIFAR-10: from the dense start to 30 % of the MACs, as in the authors' log.
#   python tools/train.py configs/gbn_resnet56_cifar10.py
#   python tools/slim.py configs/gbn_resnet56_cifar10.py work_dirs/gbn_resnet56_cifar10/epoch_600.pth OUT_DIR
_base_ = './dense_resnet56_cifar10.py'
model = dict(
    type='mmprune_gates.GatedModel', architecture='ImageClassifier', input_shape=(3, 32, 32),
    gates=dict(type='DecoratorGate'))
# The paper's: fraction of all filters that a Tick closes, lengths in epochs, learning rates, momentum; the authors'
# code has the penalty and the weight decay. Ticks on all data (subset=1) are our choice.
custom_hooks = [
    dict(
        type='mmprune_gates.GateDecoratorHook', target_macs=0.3, fraction=0.002, tick=1, tock=10, ticks=10,
        tick_lr=1e-3, tock_lr=(1e-3, 1e-2), penalty=1e-3)]
load_from = 'work_dirs/dense_resnet56_cifar10/epoch_200.pth'
param_scheduler = None  # the hook sets the learning rate
# About (1 - sqrt(0.3)) / 0.002 = 226 Ticks and 23 Tocks, 456 epochs, if all layers shrink alike. The rest is the
# fine-tune: 40 epochs, as in the authors' code, are left even after 275 Ticks.
train_cfg = dict(max_epochs=600)
