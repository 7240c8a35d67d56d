# GDP on SegFormer-B0, ADE20K, 160k iterations, from ImageNet weights: prunes while it trains, to 60 % of the MACs (our
# choice). Everything else is inherited from the stock config. Widths that attention fixes stay whole: see the prunable
# share in README.md.
#   python tools/slim.py CONFIG work_dirs/gdp_segformer_b0_ade20k/iter_160000.pth OUT_DIR
_base_ = 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'
custom_imports = dict(imports=['mmprune_gates'])
model = dict(
    type='mmprune_gates.GatedModel', architecture='EncoderDecoder', gates=dict(type='PolarizationGate'))
custom_hooks = [dict(type='mmprune_gates.PolarizationHook', target_macs=0.6)]
