"""The budget: channel scores, costs, the choice of kept channels, and the controllers that drive gates to a target."""

from mmprune_gates.budget.controller import Controller
from mmprune_gates.budget.costs import Cost, MACs, Parameters
from mmprune_gates.budget.criteria import Criterion, Magnitude, MeanGradient, NormScale, Random, Taylor
from mmprune_gates.budget.goal import Goal
from mmprune_gates.budget.gradient import Gradient
from mmprune_gates.budget.latency import Latency
from mmprune_gates.budget.polarizer import Polarizer, Schedule
from mmprune_gates.budget.selection import Candidates, Limits
from mmprune_gates.budget.tick_tock import Cycle, TickTock
from mmprune_gates.budget.waterline import Waterline

__all__ = [
    'Candidates',
    'Controller',
    'Cost',
    'Criterion',
    'Cycle',
    'Goal',
    'Gradient',
    'Latency',
    'Limits',
    'MACs',
    'Magnitude',
    'MeanGradient',
    'NormScale',
    'Parameters',
    'Polarizer',
    'Random',
    'Schedule',
    'Taylor',
    'TickTock',
    'Waterline',
]
