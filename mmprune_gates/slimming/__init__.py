"""Slimming: remove channels for good, and return the specification from which a slim model is rebuilt."""

from mmprune_gates.slimming.removal import remove_modules
from mmprune_gates.slimming.surgery import masked_copy, slim_model
from mmprune_gates.slimming.trace import trace_channels
from mmprune_gates.slimming.widths import apply_widths

__all__ = ['apply_widths', 'masked_copy', 'remove_modules', 'slim_model', 'trace_channels']
