"""Coverage of a config: every convolution and linear layer, its groups, and whether it can be pruned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmprune_gates.channels import ChannelGraph
from mmprune_gates.channels.groups import Block
from mmprune_gates.engine.builders import trace
from mmprune_gates.engine.model_config import GATED, default_input_shape, model_config_of, refuse_slim, stock_model

# What is told of a layer, besides its share of the MACs.
LAYER = ('name', 'kind', 'macs', 'prunable', 'out_groups', 'in_groups', 'out_frozen', 'in_frozen')


def model_of_config(
    config: Config, input_shape: Sequence[int] | None = None
) -> tuple[nn.Module, ChannelGraph, tuple[int, ...]]:
    """The model of a stock, gated or slim config, without gates or pretrained weights, ready to infer, and its graph.

    Args:
        config: The config.
        input_shape: (C, H, W) of the trace; by default ``model.input_shape`` or the data preprocessor's size.

    Returns:
        Model, graph, and the input shape it was traced with.

    Raises:
        ValueError: No input shape is known, or gates are to stand on a slim model.
    """
    init_default_scope(config.get('default_scope', 'mmengine'))
    model_config = model_config_of(config)
    shape = tuple(input_shape or default_input_shape(model_config))
    attention = 'heads'
    if model_config['type'] == GATED:
        refuse_slim(model_config)
        attention = model_config.get('attention', attention)
        model_config = stock_model(model_config)
    elif 'architecture' in model_config:
        model_config['input_shape'] = shape
    model = revert_sync_batchnorm(MODELS.build(model_config)).eval()
    return model, trace(model, shape, 'both', attention), shape


def coverage(graph: ChannelGraph) -> dict[str, Any]:
    """Totals, groups and layers of a graph as plain values, ready for JSON."""
    total, prunable = graph.macs(), graph.prunable_macs()
    blocks, layers = graph.gated_blocks, []
    for layer in graph.layers:
        told = {key: getattr(layer, key) for key in LAYER}
        layers.append({**told, 'share': layer.macs / total if total else 0.0})
    return {
        'macs': total,
        'prunable_macs': prunable,
        'prunable_share': prunable / total if total else 0.0,
        'groups': [{'name': g.name, 'size': g.size, 'frozen': g.frozen} for g in graph.channel_groups],
        'blocks': [{'name': block.name, 'macs': macs_of(graph, [block])} for block in blocks],
        'block_macs': macs_of(graph, blocks),
        'full_width': [path for path, module in graph.full_width.items() if bool((module.index >= 0).any())],
        'layers': layers,
    }


def macs_of(graph: ChannelGraph, blocks: Sequence[Block]) -> int:
    """MACs that removing residual blocks would save."""
    return graph.macs() - graph.macs({block.name: torch.zeros(1, dtype=torch.bool) for block in blocks})
