# Gate Decorator on FCN, VOC 2011 + SBD: from the dense start to 40 % of the MACs (our choice). VGG-16 has no batch norm
# here, so gates stand behind the convolutions: the paper's gated convolution.
#   python tools/train.py configs/gbn_fcn_voc.py
#   python tools/slim.py configs/gbn_fcn_voc.py work_dirs/gbn_fcn_voc/iter_52000.pth OUT_DIR
_base_ = './dense_fcn_voc.py'
model = dict(
    type='mmprune_gates.GatedModel', architecture='EncoderDecoder',
    backbone=dict(init_cfg=None),  # load_from has all weights
    gates=dict(type='DecoratorGate'))
# Lengths are in iterations: 531 are an epoch. The paper's: fraction, Tocks of 10 epochs, one after 10 Ticks, penalty.
# Our choice: Ticks of one epoch on a quarter of the data; a tenth of the paper's learning rates, for want of a norm.
custom_hooks = [
    dict(
        type='mmprune_gates.GateDecoratorHook', target_macs=0.4, fraction=0.01, by_epoch=False, tick=133, tock=5310,
        ticks=10, subset=0.25, tick_lr=1e-4, tock_lr=(1e-4, 1e-3), penalty=1e-3)]
load_from = 'work_dirs/dense_fcn_voc/iter_40000.pth'
optim_wrapper = dict(paramwise_cfg=None)  # one rate for all
param_scheduler = None  # the hook sets the learning rate
find_unused_parameters = True  # Ticks freeze the weights
# About (1 - sqrt(0.4)) / 0.01 = 37 Ticks and 4 Tocks, 26.2k iterations, if all layers shrink alike; the rest, about 48
# epochs, is the fine-tune. More Ticks than that shorten it.
train_cfg = dict(max_iters=52000)
