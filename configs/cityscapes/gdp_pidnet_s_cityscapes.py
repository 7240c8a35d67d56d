# GDP on PIDNet-S, Cityscapes, 120k iterations, from ImageNet weights: prunes while it trains, to half of the MACs (our
# choice). Everything else but one loss is inherited.
#   python tools/slim.py CONFIG work_dirs/gdp_pidnet_s_cityscapes/iter_120000.pth OUT_DIR
_base_ = 'mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py'
custom_imports = dict(imports=['mmprune_gates'])
# mmsegmentation 1.2.2 looks ignored pixels up among the class weights of this loss and fails: they are off for it.
first, *others = _base_.model.decode_head.loss_decode
model = dict(
    type='mmprune_gates.GatedModel', architecture='EncoderDecoder', gates=dict(type='PolarizationGate'),
    decode_head=dict(loss_decode=[dict(first, class_weight=None), *others]))
del first, others
custom_hooks = [dict(type='mmprune_gates.PolarizationHook', target_macs=0.5)]
