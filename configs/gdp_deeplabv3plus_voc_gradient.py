# The same run with the paper's update: gates are learned by gradient, with a penalty on the MACs.
_base_ = './gdp_deeplabv3plus_voc.py'
custom_hooks = [dict(type='mmprune_gates.PolarizationHook', target_macs=0.4, update='gradient')]
