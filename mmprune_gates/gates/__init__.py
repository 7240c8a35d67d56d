"""Gates: pure functions and thin modules, where a group's gate goes, attach / detach / fold."""

from mmprune_gates.gates.attach import GateSet, attach_gates, detach_gates, fold_gates, gates_of, has_gates
from mmprune_gates.gates.decorator import DecoratorGate, gated_norms, take_over_affine
from mmprune_gates.gates.evidence import Evidence, GatesDoNotAct
from mmprune_gates.gates.gate import Gate
from mmprune_gates.gates.polarization import PolarizationGate

__all__ = [
    'DecoratorGate',
    'Evidence',
    'Gate',
    'GateSet',
    'GatesDoNotAct',
    'PolarizationGate',
    'attach_gates',
    'detach_gates',
    'fold_gates',
    'gated_norms',
    'gates_of',
    'has_gates',
    'take_over_affine',
]
