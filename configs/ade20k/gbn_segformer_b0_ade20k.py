# Gate Decorator on SegFormer-B0, ADE20K: from the model zoo's dense weights to 60 % of the MACs (our choice). Lengths
# are in iterations of 8 GPUs with 2 images each: 1263 are an epoch.
#   python tools/slim.py CONFIG work_dirs/gbn_segformer_b0_ade20k/iter_96000.pth OUT_DIR
_base_ = './gdp_segformer_b0_ade20k.py'
model = dict(backbone=dict(init_cfg=None), gates=dict(type='DecoratorGate'))  # load_from has all weights
# The paper's: Tocks of 10 epochs, one after 10 Ticks, penalty. Our choice: Ticks of one epoch on a quarter of the data;
# fraction; learning rates, up to the stock one of AdamW.
custom_hooks = [
    dict(
        type='mmprune_gates.GateDecoratorHook', target_macs=0.6, fraction=0.01, by_epoch=False, tick=316, tock=12630,
        ticks=10, subset=0.25, tick_lr=6e-6, tock_lr=(6e-6, 6e-5), penalty=1e-3)]
load_from = (  # or a dense checkpoint of your own
    'https://download.openmmlab.com/mmsegmentation/v0.5/segformer/segformer_mit-b0_512x512_160k_ade20k/'
    'segformer_mit-b0_512x512_160k_ade20k_20210726_101530-8ffa8fda.pth')
param_scheduler = None  # the hook sets the learning rate
find_unused_parameters = True  # Ticks freeze the weights
train_cfg = dict(max_iters=96000)  # about 45.2k iterations of pruning, then 40 epochs of fine-tune
