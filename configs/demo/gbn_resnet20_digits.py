# Gate Decorator on digits. What prunes is the lines below; start and length are those of the dense reference.
# Lengths are in epochs, Ticks see a quarter of the training data; the paper's run has ten times as many epochs.
_base_ = './dense_continued_resnet20_digits.py'
model = dict(
    type='mmprune_gates.GatedModel', architecture='ImageClassifier', input_shape=(3, 8, 8),
    gates=dict(type='DecoratorGate'))
custom_hooks = [
    dict(
        type='mmprune_gates.GateDecoratorHook', target_macs=0.38, fraction=0.03, tick=1, tock=2, ticks=5, subset=0.25),
    dict(type='mmprune_gates.GateRecordHook')]
