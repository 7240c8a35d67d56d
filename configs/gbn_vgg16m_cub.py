# Gate Decorator on VGG-16-M, CUB-200-2011: from the dense start to 40 % of the MACs (our choice).
#   python tools/train.py configs/gbn_vgg16m_cub.py
#   python tools/slim.py configs/gbn_vgg16m_cub.py work_dirs/gbn_vgg16m_cub/epoch_120.pth OUT_DIR
_base_ = './dense_vgg16m_cub.py'
model = dict(
    type='mmprune_gates.GatedModel', architecture='ImageClassifier', input_shape=(3, 448, 448),
    backbone=dict(init_cfg=None),  # load_from has all weights
    gates=dict(type='DecoratorGate'))
# The paper's: fraction (that of VGG), lengths in epochs, learning rates, momentum; the authors' code has the penalty.
custom_hooks = [
    dict(
        type='mmprune_gates.GateDecoratorHook', target_macs=0.4, fraction=0.01, tick=1, tock=10, ticks=10,
        tick_lr=1e-3, tock_lr=(1e-3, 1e-2), penalty=1e-3)]
load_from = 'work_dirs/dense_vgg16m_cub/epoch_100.pth'
param_scheduler = None  # the hook sets the learning rate
find_unused_parameters = True  # Ticks freeze the weights
train_cfg = dict(max_epochs=120)  # about 37 Ticks and 4 Tocks, 77 epochs; the rest is the fine-tune
