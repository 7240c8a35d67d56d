"""The channel graph of any module, safe to slim by: read from its ops, then rehearsed on its code."""

from __future__ import annotations

from torch import nn

from mmprune_gates.channels import ChannelGraph, read_graph
from mmprune_gates.channels.calls import Forward, Inputs, call_options
from mmprune_gates.gates.placement import read_in_several_ways, unread
from mmprune_gates.slimming.rehearsal import rehearse
from mmprune_gates.slimming.rescale import cannot_be_rescaled
from mmprune_gates.slimming.stage import copied_without_data
from mmprune_gates.slimming.torch_attention import avoid_nested_tensors


def trace_channels(
    model: nn.Module,
    example_inputs: Inputs,
    forward: Forward | None = None,
    train_forward: Forward | None = None,
    units: str = 'channels',
    attention: str = 'heads',
    rehearsal: bool = True,
    trains: bool = False,
) -> ChannelGraph:
    """The channel graph of a model.

    Args:
        model: Any module; parameters and mode stay. Encoders of torch do without nested tensors from then on.
        example_inputs: What the model is called with: a tensor, a tuple of positional inputs, or a dict of keyword
            inputs. The first dimension of tensors is the batch; MACs are stated for one sample of their size.
        forward: ``forward(model, *args, **kwargs)`` where a plain call is not the inference pass. What is returned
            may be nested: sequences, dicts, dataclasses.
        train_forward: A second function captured in training mode, for what only training reaches (auxiliary
            heads). It adds constraints and coverage, never MACs.
        units: What may go: ``channels``, whole residual ``blocks``, or ``both``.
        attention: What attention loses: whole ``heads``, ``dims``, the same channels of every head, or ``both``.
        rehearsal: Whether to freeze what the code cannot do without, found by running narrower copies of it; otherwise
            the slim model may fail, or compute something else.
        trains: Whether what only training runs must follow as well, where there is no ``train_forward``.

    Returns:
        Groups of channels, MACs and coverage.

    Raises:
        RuntimeError: The model cannot be captured or copied, or does not run with these inputs.
        TypeError, ValueError: Inputs or outputs without tensors; another value of ``units`` or ``attention``.
    """
    options = call_options(example_inputs)
    check_copies(model)
    avoid_nested_tensors(model)
    graph = read_graph(model, options, forward, train_forward, units, attention)
    graph = graph.with_frozen(read_in_several_ways(graph) | unread(graph) | cannot_be_rescaled(graph))
    passes = (forward,) if train_forward is None else (forward, train_forward)
    return rehearse(model, graph, passes, options, trains) if rehearsal else graph


def check_copies(model: nn.Module) -> None:
    """Refuse a model that cannot be copied, such as one with a tensor that was computed from parameters.

    Raises:
        RuntimeError: It cannot.
    """
    try:
        copied_without_data(model)
    except RuntimeError as error:
        raise RuntimeError(
            f'{type(model).__name__} cannot be copied, since it holds tensors computed from its parameters: remove '
            'torch.nn.utils.weight_norm (parametrizations.weight_norm takes its place) or prune first '
            '(remove_weight_norm, prune.remove)'
        ) from error
