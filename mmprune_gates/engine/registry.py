"""Registries of the package, scope ``mmprune_gates``: models, gates and hooks beside mmengine's, criteria and costs.

A gate type, hook, criterion or cost of one's own is registered here; its file is named in ``custom_imports``.
"""

from collections.abc import Mapping
from typing import Any

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

from mmprune_gates import budget

SCOPE = {'scope': 'mmprune_gates', 'locations': ['mmprune_gates.engine']}
MODELS = Registry('model', parent=MMENGINE_MODELS, **SCOPE)
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, **SCOPE)
CRITERIA = Registry('criterion', **SCOPE)
COSTS = Registry('cost', **SCOPE)

for criterion in (budget.MeanGradient, budget.Taylor, budget.Magnitude, budget.NormScale, budget.Random):
    CRITERIA.register_module(module=criterion)
for cost in (budget.MACs, budget.Parameters, budget.Latency):
    COSTS.register_module(module=cost)


def built(registry: Registry, config: Any) -> Any:
    """What a config describes; anything but a config as it is."""
    return registry.build({'_scope_': registry.scope, **config}) if isinstance(config, Mapping) else config
