"""The pruning methods as objects that any training loop can drive."""

from mmprune_gates.pruning.gate_decorator import GateDecorator, GateDecoratorSettings
from mmprune_gates.pruning.gdp import GDP, GDPSettings
from mmprune_gates.pruning.pruner import Pruner

__all__ = ['GDP', 'GDPSettings', 'GateDecorator', 'GateDecoratorSettings', 'Pruner']
