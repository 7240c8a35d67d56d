# Gate Decorator on MobileNetV2, ImageNet-1k: from the model zoo's weights to 70 % of the MACs (our choice, as in
# gdp_mobilenetv2_imagenet.py; the paper has no such network). Settings and data of Ticks as for ResNet-50.
#   python tools/train.py configs/gbn_mobilenetv2_imagenet.py
#   python tools/slim.py configs/gbn_mobilenetv2_imagenet.py work_dirs/gbn_mobilenetv2_imagenet/epoch_220.pth OUT_DIR
_base_ = './gdp_mobilenetv2_imagenet.py'
model = dict(gates=dict(type='DecoratorGate'))
custom_hooks = [
    dict(
        type='mmprune_gates.GateDecoratorHook', target_macs=0.7, fraction=0.002, tick=1, tock=10, ticks=10, subset=0.1,
        tick_lr=1e-3, tock_lr=(1e-3, 1e-2), penalty=1e-3)]
param_scheduler = None  # the hook sets the learning rate
find_unused_parameters = True  # Ticks freeze the weights
train_cfg = dict(max_epochs=220)  # about 82 Ticks, on a tenth of the data, and 9 Tocks; the rest is the fine-tune
