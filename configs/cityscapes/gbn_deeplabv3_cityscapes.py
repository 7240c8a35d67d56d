# Gate Decorator on DeepLabV3-R50, Cityscapes: from the model zoo's dense weights to 40 % of the MACs (our choice).
# Lengths are in iterations of 4 GPUs with 2 images each: 372 are an epoch.
#   python tools/slim.py CONFIG work_dirs/gbn_deeplabv3_cityscapes/iter_48000.pth OUT_DIR
_base_ = './gdp_deeplabv3_cityscapes.py'
model = dict(pretrained=None, gates=dict(type='DecoratorGate'))  # load_from has all weights
# The paper's: Tocks of 10 epochs, one after 10 Ticks, penalty, learning rates. Our choice: Ticks of one epoch on a
# quarter of the data; fraction.
custom_hooks = [
    dict(
        type='mmprune_gates.GateDecoratorHook', target_macs=0.4, fraction=0.01, by_epoch=False, tick=93, tock=3720,
        ticks=10, subset=0.25, tick_lr=1e-3, tock_lr=(1e-3, 1e-2), penalty=1e-3)]
load_from = (  # or a dense checkpoint of your own
    'https://download.openmmlab.com/mmsegmentation/v0.5/deeplabv3/deeplabv3_r50-d8_512x1024_80k_cityscapes/'
    'deeplabv3_r50-d8_512x1024_80k_cityscapes_20200606_113404-b92cfdd4.pth')
param_scheduler = None  # the hook sets the learning rate
find_unused_parameters = True  # Ticks freeze the weights
train_cfg = dict(max_iters=48000)  # about 18.3k iterations of pruning, then 79 epochs of fine-tune
