# Gate Decorator on ResNet-50, ImageNet-1k: from the model zoo's weights to 60 % of the MACs, as in the article.
#   python tools/train.py configs/gbn_resnet50_imagenet.py
#   python tools/slim.py configs/gbn_resnet50_imagenet.py work_dirs/gbn_resnet50_imagenet/epoch_280.pth OUT_DIR
_base_ = './gdp_resnet50_imagenet.py'
model = dict(gates=dict(type='DecoratorGate'))
# The paper's: fraction, Tocks of 10 epochs, one after 10 Ticks, learning rates, decay; the authors' code has the
# penalty. Our choice: Ticks of one epoch on a tenth of the data. Rates are for 8 GPUs of 32 images.
custom_hooks = [
    dict(
        type='mmprune_gates.GateDecoratorHook', target_macs=0.6, fraction=0.002, tick=1, tock=10, ticks=10, subset=0.1,
        tick_lr=1e-3, tock_lr=(1e-3, 1e-2), penalty=1e-3)]
param_scheduler = None  # the hook sets the learning rate
find_unused_parameters = True  # Ticks freeze the weights
train_cfg = dict(max_epochs=280)  # about 113 Ticks, on a tenth of the data, and 12 Tocks; the rest is the fine-tune
