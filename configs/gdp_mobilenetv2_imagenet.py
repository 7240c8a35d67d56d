# GDP on MobileNetV2, ImageNet-1k, 100 epochs from the model zoo's weights: prunes while it trains, to 70 % of the MACs.
#   python tools/train.py configs/gdp_mobilenetv2_imagenet.py
#   python tools/slim.py configs/gdp_mobilenetv2_imagenet.py work_dirs/gdp_mobilenetv2_imagenet/epoch_100.pth OUT_DIR
_base_ = 'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py'
custom_imports = dict(imports=['mmprune_gates'])
model = dict(
    type='mmprune_gates.GatedModel', architecture='ImageClassifier', input_shape=(3, 224, 224),
    gates=dict(type='PolarizationGate'))
# target_macs: kept MACs / original MACs at input_shape; our choice, as are learning rate and schedule
custom_hooks = [dict(type='mmprune_gates.PolarizationHook', target_macs=0.7)]
load_from = (
    'https://download.openmmlab.com/mmclassification/v0/mobilenet_v2/mobilenet_v2_batch256_imagenet_20200708-3b2dc3af.pth')
optim_wrapper = dict(optimizer=dict(lr=0.02))  # for 8 GPUs of 32 images, as in the stock config
param_scheduler = dict(
    _delete_=True, type='CosineAnnealingLR', by_epoch=True, begin=0, end=100, convert_to_iter_based=True)
train_cfg = dict(max_epochs=100)
