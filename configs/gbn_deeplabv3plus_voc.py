# Gate Decorator on DeepLabV3+-R50, PASCAL VOC2012 + aug: from the model zoo's dense weights to 40 % of the MACs. Data,
# batch and SGD are inherited; lengths are in iterations of 4 GPUs with 4 images each: 661 are an epoch.
#   python tools/train.py configs/gbn_deeplabv3plus_voc.py
#   python tools/slim.py configs/gbn_deeplabv3plus_voc.py work_dirs/gbn_deeplabv3plus_voc/iter_64000.pth OUT_DIR
_base_ = 'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-40k_voc12aug-512x512.py'
custom_imports = dict(imports=['mmprune_gates'])
model = dict(
    type='mmprune_gates.GatedModel', architecture='EncoderDecoder', pretrained=None,  # load_from has all weights
    gates=dict(type='DecoratorGate'))
# The paper's: Tocks of 10 epochs, one after 10 Ticks, their penalty and all learning rates. Our choice: Ticks of one
# epoch on a quarter of the data; five times the fraction that the paper has for ResNets on CIFAR and ImageNet.
custom_hooks = [
    dict(
        type='mmprune_gates.GateDecoratorHook', target_macs=0.4, fraction=0.01, by_epoch=False, tick=165, tock=6610,
        ticks=10, subset=0.25, tick_lr=1e-3, tock_lr=(1e-3, 1e-2), penalty=1e-3)]
load_from = (  # or a dense checkpoint of your own
    'https://download.openmmlab.com/mmsegmentation/v0.5/deeplabv3plus/deeplabv3plus_r50-d8_512x512_40k_voc12aug/'
    'deeplabv3plus_r50-d8_512x512_40k_voc12aug_20200613_161759-e1b43aa9.pth')
param_scheduler = None  # the hook sets the learning rate
find_unused_parameters = True  # Ticks freeze the weights
# About (1 - sqrt(0.4)) / 0.01 = 37 Ticks and 4 Tocks, 32.5k iterations, if all layers shrink alike; the rest, about 47
# epochs, is the fine-tune. More Ticks than that shorten it.
train_cfg = dict(max_iters=64000)
