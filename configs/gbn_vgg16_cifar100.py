# Gate Decorator on VGG-16, CIFAR-100: from the dense start to a quarter of the MACs, as in the article.
#   python tools/train.py configs/gbn_vgg16_cifar100.py
#   python tools/slim.py configs/gbn_vgg16_cifar100.py work_dirs/gbn_vgg16_cifar100/epoch_300.pth OUT_DIR
_base_ = './dense_vgg16_cifar100.py'
model = dict(
    type='mmprune_gates.GatedModel', architecture='ImageClassifier', input_shape=(3, 32, 32),
    gates=dict(type='DecoratorGate'))
# all settings but the target are those for CIFAR-10, where it is said which are the paper's
custom_hooks = [
    dict(
        type='mmprune_gates.GateDecoratorHook', target_macs=0.25, fraction=0.005, tick=1, tock=10, ticks=10,
        tick_lr=1e-3, tock_lr=(1e-3, 1e-2), penalty=1e-3)]
load_from = 'work_dirs/dense_vgg16_cifar100/epoch_200.pth'
param_scheduler = None  # the hook sets the learning rate
train_cfg = dict(max_epochs=300)  # about 100 Ticks and 11 Tocks, 210 epochs; the rest is the fine-tune
