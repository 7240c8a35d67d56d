"""The channel graph: which channels of a model belong together, which can go, and what they cost."""

from mmprune_gates.channels.graph import ChannelGraph, Group, Layer
from mmprune_gates.channels.trace import trace_channels

__all__ = ['ChannelGraph', 'Group', 'Layer', 'trace_channels']
