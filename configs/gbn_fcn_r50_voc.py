# Gate Decorator on FCN-R50, VOC 2011 + SBD: from the dense start to 40 % of the MACs (our choice).
#   python tools/train.py configs/gbn_fcn_r50_voc.py
#   python tools/slim.py configs/gbn_fcn_r50_voc.py work_dirs/gbn_fcn_r50_voc/iter_52000.pth OUT_DIR
_base_ = './dense_fcn_r50_voc.py'
model = dict(
    type='mmprune_gates.GatedModel', architecture='EncoderDecoder', pretrained=None,  # load_from has all weights
    gates=dict(type='DecoratorGate'))
# Lengths are in iterations, 531 are an epoch. The paper's: fraction (that of FCN), Tocks of 10 epochs, one after 10
# Ticks, penalty, learning rates. Our choice: Ticks of one epoch on a quarter of the data.
custom_hooks = [
    dict(
        type='mmprune_gates.GateDecoratorHook', target_macs=0.4, fraction=0.01, by_epoch=False, tick=133, tock=5310,
        ticks=10, subset=0.25, tick_lr=1e-3, tock_lr=(1e-3, 1e-2), penalty=1e-3)]
load_from = 'work_dirs/dense_fcn_r50_voc/iter_40000.pth'
param_scheduler = None  # the hook sets the learning rate
find_unused_parameters = True  # Ticks freeze the weights
train_cfg = dict(max_iters=52000)  # about 26.2k iterations of pruning, then 48 epochs of fine-tune
