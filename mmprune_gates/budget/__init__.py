"""The MACs budget: which channels stay under it, and the controllers that drive gates towards it."""

from mmprune_gates.budget.controller import Controller, Schedule
from mmprune_gates.budget.gradient import GradientController
from mmprune_gates.budget.pruner import Pruner, checked_target
from mmprune_gates.budget.selection import Candidates, Limits, fill, per_mac
from mmprune_gates.budget.tick_tock import Cycle, TickTock
from mmprune_gates.budget.waterline import WaterlineController

__all__ = [
    'Candidates',
    'Controller',
    'Cycle',
    'GradientController',
    'Limits',
    'Pruner',
    'Schedule',
    'TickTock',
    'WaterlineController',
    'checked_target',
    'fill',
    'per_mac',
]
