# GDP on the dense start of the demo: five lines of configuration, everything else is inherited.
_base_ = './dense_deeplabv3plus_scenes.py'
model = dict(
    type='mmprune_gates.GatedModel', architecture='EncoderDecoder', gates=dict(type='PolarizationGate'))
custom_hooks = [dict(type='mmprune_gates.PolarizationHook', target_macs=0.27)]
