# GDP on FCN-R50, VOC 2011 + SBD, 40k iterations, from ImageNet weights: prunes while it trains, to 40 % of the MACs
# (our choice). Everything else is that of the dense start.
#   python tools/train.py configs/gdp_fcn_r50_voc.py
#   python tools/slim.py configs/gdp_fcn_r50_voc.py work_dirs/gdp_fcn_r50_voc/iter_40000.pth OUT_DIR
_base_ = './dense_fcn_r50_voc.py'
model = dict(
    type='mmprune_gates.GatedModel', architecture='EncoderDecoder', gates=dict(type='PolarizationGate'))
custom_hooks = [dict(type='mmprune_gates.PolarizationHook', target_macs=0.4)]
