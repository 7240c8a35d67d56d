# GDP on digits. What prunes is the five lines below; schedule and start are those of the dense reference.
_base_ = './dense_continued_resnet20_digits.py'
model = dict(
    type='mmprune_gates.GatedModel', architecture='ImageClassifier', input_shape=(3, 8, 8),
    gates=dict(type='PolarizationGate'))
custom_hooks = [
    dict(type='mmprune_gates.PolarizationHook', target_macs=0.3)]
