# GDP on BiSeNetV2, Cityscapes, 160k iterations, from scratch, as the stock config: prunes while it trains, to half of
# the MACs (our choice). Everything else is inherited from the stock config.
#   python tools/slim.py CONFIG work_dirs/gdp_bisenetv2_cityscapes/iter_160000.pth OUT_DIR
_base_ = 'mmseg::bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024.py'
custom_imports = dict(imports=['mmprune_gates'])
model = dict(
    type='mmprune_gates.GatedModel', architecture='EncoderDecoder', gates=dict(type='PolarizationGate'))
custom_hooks = [dict(type='mmprune_gates.PolarizationHook', target_macs=0.5)]
