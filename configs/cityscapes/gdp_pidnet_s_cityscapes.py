# GDP on PIDNet-S, Cityscapes, 120k iterations, from ImageNet weights: prunes while it trains, to half of the MACs (our
# choice). Everything else is inherited from the stock config.
#   python tools/slim.py CONFIG work_dirs/gdp_pidnet_s_cityscapes/iter_120000.pth OUT_DIR
_base_ = 'mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py'
custom_imports = dict(imports=['mmprune_gates'])
model = dict(
    type='mmprune_gates.GatedModel', architecture='EncoderDecoder', gates=dict(type='PolarizationGate'))
custom_hooks = [dict(type='mmprune_gates.PolarizationHook', target_macs=0.5)]
