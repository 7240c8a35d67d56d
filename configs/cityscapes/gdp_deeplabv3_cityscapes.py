# GDP on DeepLabV3-R50, Cityscapes, 80k iterations, from ImageNet weights: prunes while it trains, to 40 % of the MACs
# (our choice). Everything else is inherited from the stock config.
#   python tools/slim.py CONFIG work_dirs/gdp_deeplabv3_cityscapes/iter_80000.pth OUT_DIR
_base_ = 'mmseg::deeplabv3/deeplabv3_r50-d8_4xb2-80k_cityscapes-512x1024.py'
custom_imports = dict(imports=['mmprune_gates'])
model = dict(
    type='mmprune_gates.GatedModel', architecture='EncoderDecoder', gates=dict(type='PolarizationGate'))
custom_hooks = [dict(type='mmprune_gates.PolarizationHook', target_macs=0.4)]
