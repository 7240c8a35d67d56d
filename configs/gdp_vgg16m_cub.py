# GDP on VGG-16-M, CUB-200-2011, 100 epochs from ImageNet weights: prunes while it trains, to 40 % of the MACs (our
# choice). Everything else is that of the dense start.
#   python tools/train.py configs/gdp_vgg16m_cub.py
#   python tools/slim.py configs/gdp_vgg16m_cub.py work_dirs/gdp_vgg16m_cub/epoch_100.pth OUT_DIR
_base_ = './dense_vgg16m_cub.py'
model = dict(
    type='mmprune_gates.GatedModel', architecture='ImageClassifier', input_shape=(3, 448, 448),
    gates=dict(type='PolarizationGate'))
custom_hooks = [dict(type='mmprune_gates.PolarizationHook', target_macs=0.4)]
