# The same to 20 % of the MACs (our choice).
_base_ = './gdp_pspnet_cityscapes.py'
custom_hooks = [dict(_base_.custom_hooks[0], target_macs=0.2)]
