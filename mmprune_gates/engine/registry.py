"""Registries of the package, scope ``mmprune_gates``: models, gates and hooks beside mmengine's, criteria and costs.

Custom gate types, hooks, criteria and costs are registered here; ``custom_imports`` names their files.
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
    """The object that a config describes; anything but a config is returned as it is.

    Raises:
        ValueError: Its type is not registered, or does not take its arguments.
    """
    if not isinstance(config, Mapping):
        return config
    options = dict(config)
    name = options.pop('type', None)
    kind = registry.get(name) if isinstance(name, str) else name
    if not callable(kind):
        known = ', '.join(registry.module_dict)
        raise ValueError(
            f'{registry.name}={dict(config)!r}: its type must be one of {known}, or of your own, registered in '
            'mmprune_gates and imported by custom_imports'
        )
    try:
        return kind(**options)
    except TypeError as error:
        raise ValueError(f'{registry.name}={dict(config)!r}: {error}') from error
