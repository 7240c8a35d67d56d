# GDP at full size on the demo data: goes on from a dense start, with the dense schedule; what prunes is below.
_base_ = './dense_deeplabv3plus_r50_scenes.py'
model = dict(
    type='mmprune_gates.GatedModel', architecture='EncoderDecoder', gates=dict(type='PolarizationGate'))
custom_hooks = [
    dict(type='mmprune_gates.PolarizationHook', target_macs=0.4),
    dict(type='mmprune_gates.GateRecordHook', interval=10)]
