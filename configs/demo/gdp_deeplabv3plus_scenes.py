# GDP on the demo data. What prunes is the five lines below; schedule and start are those of the dense reference.
_base_ = './dense_continued_deeplabv3plus_scenes.py'
model = dict(
    type='mmprune_gates.GatedModel', architecture='EncoderDecoder', gates=dict(type='PolarizationGate'))
custom_hooks = [
    dict(type='mmprune_gates.PolarizationHook', target_macs=0.24),
    dict(type='mmprune_gates.GateRecordHook', interval=20)]
