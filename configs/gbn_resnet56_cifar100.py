# Gate Decorator on ResNet-56, CIFAR-100: from the dense start to half of the MACs (our choice).
#   python tools/train.py configs/gbn_resnet56_cifar100.py
#   python tools/slim.py configs/gbn_resnet56_cifar100.py work_dirs/gbn_resnet56_cifar100/epoch_400.pth OUT_DIR
_base_ = './dense_resnet56_cifar100.py'
model = dict(
    type='mmprune_gates.GatedModel', architecture='ImageClassifier', input_shape=(3, 32, 32),
    gates=dict(type='DecoratorGate'))
# all settings but the target are those for CIFAR-10, where it is said which are the paper's
custom_hooks = [
    dict(
        type='mmprune_gates.GateDecoratorHook', target_macs=0.5, fraction=0.002, tick=1, tock=10, ticks=10,
        tick_lr=1e-3, tock_lr=(1e-3, 1e-2), penalty=1e-3)]
load_from = 'work_dirs/dense_resnet56_cifar100/epoch_200.pth'
param_scheduler = None  # the hook sets the learning rate
train_cfg = dict(max_epochs=400)  # about 146 Ticks and 15 Tocks, 296 epochs; the rest is the fine-tune
