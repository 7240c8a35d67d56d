"""The MACs budget: which channels stay under it, and the controllers that drive gates towards it."""

from mmprune_gates.budget.controller import Controller, Schedule
from mmprune_gates.budget.gradient import GradientController
from mmprune_gates.budget.selection import Candidates, Limits, fill
from mmprune_gates.budget.waterline import WaterlineController

__all__ = [
    'Candidates',
    'Controller',
    'GradientController',
    'Limits',
    'Schedule',
    'WaterlineController',
    'fill',
]
