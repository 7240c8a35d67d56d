"""What mmengine sees: registries, builders and hooks. Importing this registers them."""

from mmprune_gates.engine.builders import build_gated_model, build_slim_model
from mmprune_gates.engine.cifar_resnet import build_cifar_resnet
from mmprune_gates.engine.decorator_hook import GateDecoratorHook
from mmprune_gates.engine.polarization_hook import PolarizationHook
from mmprune_gates.engine.record_hook import GateRecordHook
from mmprune_gates.engine.registry import COSTS, CRITERIA, HOOKS, MODELS

__all__ = [
    'COSTS',
    'CRITERIA',
    'GateDecoratorHook',
    'GateRecordHook',
    'HOOKS',
    'MODELS',
    'PolarizationHook',
    'build_cifar_resnet',
    'build_gated_model',
    'build_slim_model',
]
