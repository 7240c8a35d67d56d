# Gate Decorator on PIDNet-S, Cityscapes: from the model zoo's dense weights to half of the MACs (our choice). Lengths
# are in iterations of 2 GPUs with 6 images each: 248 are an epoch.
#   python tools/slim.py CONFIG work_dirs/gbn_pidnet_s_cityscapes/iter_24000.pth OUT_DIR
_base_ = './gdp_pidnet_s_cityscapes.py'
model = dict(backbone=dict(init_cfg=None), gates=dict(type='DecoratorGate'))  # load_from has all weights
# The paper's: Tocks of 10 epochs, one after 10 Ticks, penalty, learning rates. Our choice: Ticks of one epoch on a
# quarter of the data; fraction.
custom_hooks = [
    dict(
        type='mmprune_gates.GateDecoratorHook', target_macs=0.5, fraction=0.01, by_epoch=False, tick=62, tock=2480,
        ticks=10, subset=0.25, tick_lr=1e-3, tock_lr=(1e-3, 1e-2), penalty=1e-3)]
load_from = (  # or a dense checkpoint of your own
    'https://download.openmmlab.com/mmsegmentation/v0.5/pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes/'
    'pidnet-s_2xb6-120k_1024x1024-cityscapes_20230302_191700-bb8e3bcc.pth')
param_scheduler = None  # the hook sets the learning rate
find_unused_parameters = True  # Ticks freeze the weights
train_cfg = dict(max_iters=24000)  # about 9.2k iterations of pruning, then 59 epochs of fine-tune
