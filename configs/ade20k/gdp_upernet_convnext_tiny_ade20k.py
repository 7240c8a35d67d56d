# GDP on UPerNet with ConvNeXt-T, ADE20K, 160k iterations, from ImageNet weights: prunes while it trains, to half of the
# MACs (our choice). Everything else is inherited from the stock config.
#   python tools/slim.py CONFIG work_dirs/gdp_upernet_convnext_tiny_ade20k/iter_160000.pth OUT_DIR
_base_ = 'mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py'
custom_imports = dict(imports=['mmprune_gates', 'mmpretrain.models'])
model = dict(
    type='mmprune_gates.GatedModel', architecture='EncoderDecoder', gates=dict(type='PolarizationGate'))
custom_hooks = [dict(type='mmprune_gates.PolarizationHook', target_macs=0.5)]
