"""Channel pruning with gates for OpenMMLab models, and for any other torch module.

Importing the package is enough to use it as a plug-in (``custom_imports = dict(imports=['mmprune_gates'])``):
it first cures what is broken between the installed versions of other packages (:mod:`mmprune_gates.compat`),
then registers its builders and hooks where mmengine is installed.
"""

from mmprune_gates import compat

# Before everything else: the modules below may import what the cures repair.
compat.apply_cures()

# Public API of the layers goes here: trace_channels, masked_copy, slim_model.

# Registration with mmengine goes here: if compat.has_package("mmengine"): import mmprune_gates.engine

__version__ = "0.1.0"

__all__ = ["__version__"]
