# GDP on DeepLabV3+-R50, PASCAL VOC2012 + aug, 40k iterations, from ImageNet weights: prunes while it trains, to 40 % of
# the MACs. Everything else (data, schedule, pretrained start) is inherited from the stock config.
#   python tools/train.py configs/gdp_deeplabv3plus_voc.py
#   python tools/slim.py configs/gdp_deeplabv3plus_voc.py work_dirs/gdp_deeplabv3plus_voc/iter_40000.pth OUT_DIR
_base_ = 'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-40k_voc12aug-512x512.py'
custom_imports = dict(imports=['mmprune_gates'])
model = dict(
    type='mmprune_gates.GatedModel', architecture='EncoderDecoder', gates=dict(type='PolarizationGate'))
# target_macs: kept MACs / original MACs at the crop size, all heads that infer included
custom_hooks = [dict(type='mmprune_gates.PolarizationHook', target_macs=0.4)]
