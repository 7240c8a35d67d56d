"""Channel pruning with gates for OpenMMLab models, and for any other torch module.

Importing the package is enough to use it as a plug-in (``custom_imports = dict(imports=['mmprune_gates'])``):
it first repairs what is broken between the installed versions of other packages (:mod:`mmprune_gates.compat`),
then registers its builders and hooks if mmengine is installed.
"""

from mmprune_gates import compat

# Before everything else: the modules below may import what the cures repair.
compat.apply_cures()

from mmprune_gates.pruning import GDP, GateDecorator
from mmprune_gates.slimming import masked_copy, slim_model, trace_channels
from mmprune_gates.version import __version__

__all__ = ['GDP', 'GateDecorator', '__version__', 'masked_copy', 'slim_model', 'trace_channels']

if compat.has_package('mmengine'):
    from mmprune_gates.engine import COSTS, CRITERIA, HOOKS, MODELS  # noqa: F401
    from mmprune_gates.timing.feedback import MeasuredLatencyHook  # noqa: F401

    __all__ += ['COSTS', 'CRITERIA', 'HOOKS', 'MODELS']
