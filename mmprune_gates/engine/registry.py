"""Registries of the package: children of mmengine's, scope ``mmprune_gates``.

A gate type or hook of one's own is registered here (or in any mmengine registry, with its scope in the type).
"""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmprune_gates', locations=['mmprune_gates.engine'])
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmprune_gates', locations=['mmprune_gates.engine'])
