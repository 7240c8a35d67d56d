# Gate Decorator on BiSeNetV2, Cityscapes: from the model zoo's dense weights to half of the MACs (our choice). Lengths
# are in iterations of 4 GPUs with 4 images each: 186 are an epoch.
#   python tools/slim.py CONFIG work_dirs/gbn_bisenetv2_cityscapes/iter_16000.pth OUT_DIR
_base_ = './gdp_bisenetv2_cityscapes.py'
model = dict(gates=dict(type='DecoratorGate'))
# The paper's: Tocks of 10 epochs, one after 10 Ticks, penalty, learning rates. Our choice: Ticks of one epoch on a
# quarter of the data; fraction.
custom_hooks = [
    dict(
        type='mmprune_gates.GateDecoratorHook', target_macs=0.5, fraction=0.01, by_epoch=False, tick=46, tock=1860,
        ticks=10, subset=0.25, tick_lr=1e-3, tock_lr=(1e-3, 1e-2), penalty=1e-3)]
load_from = (  # or a dense checkpoint of your own
    'https://download.openmmlab.com/mmsegmentation/v0.5/bisenetv2/bisenetv2_fcn_4x4_1024x1024_160k_cityscapes/'
    'bisenetv2_fcn_4x4_1024x1024_160k_cityscapes_20210902_015551-bcf10f09.pth')
param_scheduler = None  # the hook sets the learning rate
find_unused_parameters = True  # Ticks freeze the weights
train_cfg = dict(max_iters=16000)  # about 6.9k iterations of pruning, then 48 epochs of fine-tune
