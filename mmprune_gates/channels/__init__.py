"""The channel graph: which channels of a model belong together, which can go, and what they cost."""

from mmprune_gates.channels.graph import ChannelGraph, Group, Layer
from mmprune_gates.channels.trace import read_graph

__all__ = ['ChannelGraph', 'Group', 'Layer', 'read_graph']
