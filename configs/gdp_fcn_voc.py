# GDP on FCN (VGG-16 without batch norm), VOC 2011 + SBD, 40k iterations: goes on from the dense start and prunes
# while it trains, to 40 % of the MACs (our choice). Without norm, gates stand behind the convolutions.
#   python tools/train.py configs/gdp_fcn_voc.py
#   python tools/slim.py configs/gdp_fcn_voc.py work_dirs/gdp_fcn_voc/iter_40000.pth OUT_DIR
_base_ = './dense_fcn_voc.py'
model = dict(
    type='mmprune_gates.GatedModel', architecture='EncoderDecoder',
    backbone=dict(init_cfg=None),  # load_from has all weights
    gates=dict(type='PolarizationGate'))
custom_hooks = [dict(type='mmprune_gates.PolarizationHook', target_macs=0.4)]
load_from = 'work_dirs/dense_fcn_voc/iter_40000.pth'
optim_wrapper = dict(paramwise_cfg=None)  # one rate for all
