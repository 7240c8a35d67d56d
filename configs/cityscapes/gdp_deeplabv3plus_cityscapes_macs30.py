# The same to 30 % of the MACs (our choice).
_base_ = './gdp_deeplabv3plus_cityscapes.py'
custom_hooks = [dict(_base_.custom_hooks[0], target_macs=0.3)]
