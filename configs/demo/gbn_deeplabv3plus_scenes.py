# Gate Decorator on the demo data. What prunes is the lines below; start and length are those of the dense reference.
# Lengths are in iterations; the rates are those of the dense run's AdamW, not the paper's (which are for SGD).
_base_ = './dense_continued_deeplabv3plus_scenes.py'
model = dict(
    type='mmprune_gates.GatedModel', architecture='EncoderDecoder', gates=dict(type='DecoratorGate'))
custom_hooks = [
    dict(
        type='mmprune_gates.GateDecoratorHook', target_macs=0.38, fraction=0.03, by_epoch=False, tick=20, tock=150,
        ticks=5, subset=0.25, tick_lr=1e-3, tock_lr=(1e-5, 1e-2)),
    dict(type='mmprune_gates.GateRecordHook', interval=20)]
