"""Model builders: functions in the registry that return an instance of the architecture's own class.

Their config keeps the architecture's own keys at the top level, so that inheritance overrides only what differs
and stock code that reads ``cfg.model.backbone`` keeps working.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.dist import is_distributed
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import init_default_scope
from torch import nn

from mmprune_gates.channels import ChannelGraph
from mmprune_gates.checks import MAPPING, SHARE, checked, optional
from mmprune_gates.engine.forwards import inference_forward, training_forward
from mmprune_gates.engine.model_config import default_input_shape, model_config_of, refuse_slim, without_pretrained
from mmprune_gates.engine.registry import MODELS
from mmprune_gates.gates import DecoratorGate, Gate, PolarizationGate, attach_gates
from mmprune_gates.gates.attach import NAME
from mmprune_gates.slimming import apply_widths, remove_modules, slim_model, trace_channels

for kind in (PolarizationGate, DecoratorGate):
    MODELS.register_module(module=kind)


@MODELS.register_module(name='GatedModel')
def build_gated_model(
    architecture: str,
    gates: Mapping[str, Any] | None = None,
    input_shape: Sequence[int] | None = None,
    units: str = 'channels',
    attention: str = 'heads',
    **config: Any,
) -> nn.Module:
    """A stock model with a gate on every channel group that can be pruned; its output is that of the stock model.

    Args:
        architecture: Type of the stock model, for example ``EncoderDecoder``.
        gates: Config of the gates; the type is looked up in ``mmprune_gates.MODELS``.
        input_shape: (C, H, W) that MACs are stated for; by default (3, *data_preprocessor.size).
        units: What gets gates: ``channels``, whole residual ``blocks``, or ``both``.
        attention: What attention loses: whole ``heads``, ``dims``, the same channels of every head, or ``both``.
        **config: The architecture's own keys.

    Returns:
        An instance of the architecture's class with one more submodule, ``gates``.

    Raises:
        ValueError: No input shape is known, no channel can be pruned, or the config is of a slim model.
    """
    checked('model.gates', gates, optional(MAPPING))
    refuse_slim(config)
    shape = default_input_shape({**config, 'input_shape': input_shape})
    model = build_architecture(architecture, config)
    graph = trace(model, shape, units, attention)
    if not is_distributed():
        # The Runner would do this later and lose the hooks attached to the old modules.
        model = revert_sync_batchnorm(model)
    attach_gates(model, graph, lambda size: build_gate(gates or {}, size))
    model.register_forward_pre_hook(warn_if_unmoved)
    return model


@MODELS.register_module(name='SlimModel')
def build_slim_model(
    architecture: str,
    widths: Mapping[str, Mapping] | float,
    removed: Mapping[str, Sequence[int] | None] = MappingProxyType({}),
    input_shape: Sequence[int] | None = None,
    **config: Any,
) -> nn.Module:
    """A stock model with fewer channels, initialised from scratch.

    Args:
        architecture: Type of the stock model.
        widths: Module path -> width attributes, as slimming writes them; or one number in (0, 1], the share of
            channels that every free group keeps (the "shrunk" baseline).
        removed: Module path -> None, or the shape of the constant in its place, for the modules of removed residual
            blocks, as slimming writes them.
        input_shape: (C, H, W) of the trace that a number needs; by default (3, *data_preprocessor.size).
        **config: The architecture's own keys. Pretrained weights in them are not loaded: they do not fit.

    Raises:
        ValueError: Widths or paths do not belong to the architecture.
    """
    if not isinstance(widths, Mapping):
        shape = default_input_shape({**config, 'input_shape': input_shape})
        checked('model.widths, if not a dictionary,', widths, SHARE)
    model = build_architecture(architecture, without_pretrained(config))
    remove_modules(model, removed)
    if isinstance(widths, Mapping):
        apply_widths(model, widths)
        return model
    graph = trace(model, shape)
    apply_widths(model, slim_model(copy.deepcopy(model), graph, uniform(graph, widths))['widths'])
    return model


def inference_model(config: Config) -> nn.Module:
    """The model of a config without pretrained weights, ready for inference on one device."""
    init_default_scope(config.get('default_scope', 'mmengine'))
    model = ROOT_MODELS.build(model_config_of(config))
    return revert_sync_batchnorm(model).eval()


def build_architecture(architecture: str, config: Mapping[str, Any]) -> nn.Module:
    """The stock model; its config is a ``ConfigDict``, whose keys stock models read as attributes."""
    return ROOT_MODELS.build(ConfigDict(type=architecture, **config))


def build_gate(config: Mapping[str, Any], size: int) -> Gate:
    """A gate from its config.

    Raises:
        ValueError: Its type is not registered, is no gate, or refuses its arguments.
    """
    options = dict(config)
    name = options.pop('type', 'PolarizationGate')
    kind = MODELS.get(name) if isinstance(name, str) else name
    if kind is None:
        raise ValueError(
            f'model.gates.type {name!r} is not registered: register it in mmprune_gates.MODELS and name its module in '
            'custom_imports'
        )
    try:
        gate = kind(size=size, **options)
    except (TypeError, ValueError) as error:
        raise ValueError(f'model.gates of type {name!r}: {error}') from error
    if not isinstance(gate, Gate):
        raise ValueError(f'model.gates.type {name!r} builds a {type(gate).__name__}, not a mmprune_gates Gate')
    return gate


def warn_if_unmoved(model: nn.Module, args: tuple) -> None:
    """Forward pre-hook: warn once that a gated model trains while nothing moves its gates."""
    gates = getattr(model, NAME, None)
    if gates is None or gates.owner is not None or gates.warned or not (model.training and torch.is_grad_enabled()):
        return
    gates.warned = True
    print_log(
        f'{type(model).__name__} trains with gates that no hook moves: they stay open and nothing is pruned. Add '
        "custom_hooks = [dict(type='mmprune_gates.PolarizationHook', target_macs=0.4)] (or GateDecoratorHook)",
        'current',
        logging.WARNING,
    )


def trace(
    model: nn.Module, input_shape: Sequence[int], units: str = 'channels', attention: str = 'heads'
) -> ChannelGraph:
    """The channel graph of an OpenMMLab model, every head included; the model does not change.

    If the training pass is not implemented, only the inference pass is traced, with a warning.
    """
    example = torch.zeros(2, *input_shape)  # two: batch norm over one value cannot train
    plain = revert_sync_batchnorm(copy.deepcopy(model)).cpu()
    try:
        return trace_channels(plain, example, inference_forward, training_forward, units, attention)
    except RuntimeError as error:
        if not isinstance(error.__cause__, NotImplementedError):
            raise
        message = f'{type(model).__name__} has no training pass ({error.__cause__}); only its inference pass is traced'
        print_log(message, 'current', logging.WARNING)
        return trace_channels(plain, example, inference_forward, units=units, attention=attention)


def uniform(graph: ChannelGraph, share: float) -> dict[str, torch.Tensor]:
    """Masks that keep the same share of every free group, at least one channel of each."""
    return {g.name: torch.arange(g.size) < max(1, round(share * g.size)) for g in graph.free}
