"""Capture a model with ``torch.export`` and let channel labels flow through its graph."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from operator import getitem
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram, export
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from mmprune_gates.channels.blocks import Branch, find_branches
from mmprune_gates.channels.build import build_graph
from mmprune_gates.channels.calls import Forward, Options, batch_size, in_mode, noted_calls, run
from mmprune_gates.channels.flow import DIMS, HEADS, Flow, Scout
from mmprune_gates.channels.full_width import Call, computed_across, find_calls, keep_whole, settle
from mmprune_gates.channels.graph import OUTPUT, ChannelGraph
from mmprune_gates.channels.heads import BOTH, heads_of, tie_cuts
from mmprune_gates.channels.inline import inline_composites, inline_contexts
from mmprune_gates.channels.labels import Value
from mmprune_gates.channels.numbering import with_own_names
from mmprune_gates.channels.op import Op, as_list, is_inplace, module_path, op_name, operands, shapes
from mmprune_gates.channels.rules import Trait, apply_rule, has_trait
from mmprune_gates.channels.walked import Walked
from mmprune_gates.checks import checked, one_of

UNITS = ('channels', 'blocks', 'both')
ATTENTION = (HEADS, DIMS, BOTH)


class Captured(nn.Module):
    """Wraps a model and a custom forward, since ``torch.export`` captures a module's plain call."""

    def __init__(self, model: nn.Module, forward: Forward | None) -> None:
        super().__init__()
        self.model = model
        self.call = forward

    def forward(self, *args: Any, **kwargs: Any) -> list[torch.Tensor]:
        """All outputs, flattened."""
        return run(self.model, self.call, (args, kwargs))


def read_graph(
    model: nn.Module,
    options: Options,
    forward: Forward | None = None,
    train_forward: Forward | None = None,
    units: str = 'channels',
    attention: str = HEADS,
) -> ChannelGraph:
    """The channel graph of a model, from its ops alone; these do not show which widths the model's code fixes.

    Args:
        model: Any module; neither its parameters nor its mode change.
        options: Positional and keyword arguments that the model is called with.
        forward: ``forward(model, *args, **kwargs)`` where a plain call is not the inference pass.
        train_forward: A second function captured in training mode.
        units: What may go: ``channels``, whole residual ``blocks``, or ``both``.
        attention: What attention loses: whole ``heads``, ``dims``, the same channels of every head, or ``both``.

    Raises:
        RuntimeError: ``torch.export`` cannot capture the model.
        ValueError: ``units`` or ``attention`` has another value.
    """
    checked('units', units, one_of(UNITS))
    checked('attention', attention, one_of(ATTENTION))
    flow = Flow(model, aliases(model))
    batch = batch_size(options)
    program = _capture(flow, forward, options, training=False)
    inference = _walk(flow, program, batch, True, attention)
    branches = find_branches(inference)
    if train_forward is not None:
        program = _capture(flow, train_forward, options, training=True)
        trained = _walk(flow, program, batch, False, attention)
        branches = _in_both_passes(branches, find_branches(trained))
    settle(flow)
    tie_cuts(flow)
    branches = _that_can_go(flow, branches)
    if units != 'channels':
        branches = [_with_gate(flow, branch) for branch in branches]
    return build_graph(inference, branches, batch, prune_channels=units != 'blocks')


def _that_can_go(flow: Flow, branches: list[Branch]) -> list[Branch]:
    """The branches that cost something and end in the channels they begin with, with unique names."""
    classes = flow.classes()
    found = [branch for branch in branches if branch.terms and branch.keeps_channels(classes)]
    return with_own_names(found)


def _in_both_passes(branches: list[Branch], trained: list[Branch]) -> list[Branch]:
    """The branches of the inference pass that the training pass can do without as well."""
    modules_at = {branch.block.sites: set(branch.block.modules) for branch in trained}
    found = []
    for branch in branches:
        known = modules_at.get(branch.block.sites, set())
        if known.issuperset(branch.block.modules):  # drop path is a module in training only
            found.append(branch)
    return found


def _with_gate(flow: Flow, branch: Branch) -> Branch:
    """Give a branch a new id as its gate, and make all its cost terms depend on it."""
    ids = flow.fresh(0, 1).ids
    for number in branch.terms:
        term = flow.terms[number]
        flow.terms[number] = replace(term, factors=(*term.factors, ids))
    return replace(branch, gate=ids)


def aliases(model: nn.Module) -> dict[str, str]:
    """Module path or tensor name -> the first name of the same object; ``torch.export`` uses the last."""
    first: dict[object, str] = {}
    found = {}
    for named in (model.named_modules, model.named_parameters, model.named_buffers):
        for name, held in named(remove_duplicate=False):
            found[name] = first.setdefault(held, name)
    return found


@contextmanager
def unlogged() -> Iterator[None]:
    """Do not log the stack of an error that is raised as well, as torch does from 2.14 on."""
    logger = logging.getLogger('torch._subclasses.fake_tensor')
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled


def _capture(flow: Flow, forward: Forward | None, options: Options, training: bool) -> ExportedProgram:
    """The ATen graph of one pass, in training or evaluation mode; the modes of all modules are restored."""
    model = flow.model
    try:
        with in_mode(model, training), noted_calls(model, flow.plain, flow.odd), unlogged():
            program = export(Captured(model, forward), *options, strict=False)
    except Exception as error:
        shapes = [tuple(leaf.shape) for leaf in tree_leaves(options) if isinstance(leaf, torch.Tensor)]
        raise RuntimeError(
            f'torch.export cannot capture {type(model).__name__} with inputs {shapes}: {error}\n'
            'If the model does not run on such inputs either, correct their shape or type (in a config: '
            'model.input_shape). Give `forward` a function that runs the part of the model to be pruned without '
            'data-dependent branches and returns its tensors; inputs by keyword go into a dict.'
        ) from error
    inline_contexts(program.graph_module)
    inline_composites(program.graph_module)
    return program


def _walk(flow: Flow, program: ExportedProgram, batch: int, counted: bool, attention: str) -> Walked:
    """Let labels flow through an exported graph, from its inputs to its outputs."""
    graph = program.graph
    flow.heads = _find_heads(flow, program, batch, attention)
    values, names = _placeholders(flow, program)
    calls: dict[Node, Call] = {}
    whole: set[Node] = set()
    for found in find_calls(flow, graph, names):
        calls |= dict.fromkeys(found.nodes, found)

    def follow(node: Node, into: Flow) -> None:
        values[node] = _labels(Op(into, node, values, names, batch, counted))

    for node in graph.nodes:
        if node.op != 'call_function' or node in values:  # at the first op of a module's call, all of them are followed
            continue
        call = calls.get(node)
        if call is None and not _is_dead(node):
            follow(node, flow)
            continue
        draft = flow.draft()
        nodes = (node,) if call is None else call.nodes
        for inner in nodes:
            follow(inner, draft)
        if _settle_draft(flow, draft, call, values, batch):
            whole.update(nodes)
    for node in graph.output_node().all_input_nodes:
        for value in as_list(values[node]):
            flow.freeze(value.axes, OUTPUT)
    return Walked(flow, values, names, frozenset(whole))


def _settle_draft(flow: Flow, draft: Flow, call: Call | None, values: dict[Node, Any], batch: int) -> bool:
    """Merge the draft of a module's call or, without a call, of an op whose result nothing reads.

    Returns:
        Whether the module keeps its full width.
    """
    if call is None:
        flow.absorb_cost(draft)
        return False
    entry = computed_across(flow, draft, values[call.entry])
    if entry is not None:
        values[call.entry] = entry
        flow.absorb_whole_cost(draft)
        keep_whole(flow, call, values, batch)
        return True
    flow.absorb(draft)
    return False


def _find_heads(flow: Flow, program: ExportedProgram, batch: int, attention: str) -> dict[Node, dict[str, int]]:
    """Views that cut channels into heads -> the dimensions that can shrink, found in a walk of its own."""
    calls = [node for node in program.graph.nodes if node.op == 'call_function']
    if not any(has_trait(op_name(node), Trait.PRODUCT) for node in calls):
        return {}
    scout = Scout()
    trial = Flow(flow.model, flow.aliases, scout=scout)
    values, names = _placeholders(trial, program)
    for node in calls:
        values[node] = _labels(Op(trial, node, values, names, batch, counted=False))
    return heads_of(trial, scout, attention)


def _is_dead(node: Node) -> bool:
    """Whether nothing reads the result of a call, and the call changes nothing in place."""
    return not node.users and not is_inplace(node)


def _placeholders(flow: Flow, program: ExportedProgram) -> tuple[dict[Node, Any], dict[Node, str]]:
    """Labels of the inputs, parameters and buffers of a graph, and names of its parameters and buffers."""
    signature = program.graph_signature
    targets = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    values, names = {}, {}
    for node in program.graph.nodes:
        if node.op in ('call_function', 'output'):
            continue
        shape = shapes(node)[0]
        values[node] = Value(shape)
        if node.name in targets and node.users:
            names[node] = flow.canonical(targets[node.name].removeprefix('model.'))
            values[node] = flow.tensor(names[node], shape)
            flow.users[names[node]].update(module_path(user) for user in node.users if user.op == 'call_function')
    return values, names


def _labels(op: Op) -> Any:
    """Labels of an op's result.

    ``torch.export`` makes later readers of a tensor changed in place read the result of the in-place op, except
    through views and across the graphs of contexts. Labels read there would be out of date, so the channels are frozen.
    """
    result = apply_rule(op)
    if not is_inplace(op.node) or isinstance(result, list):
        return result
    operand = operands(op.node)[0]
    viewed = _is_view(operand) or any(map(_is_view, operand.users))
    read_later = any(user not in op.values and user is not op.node for user in operand.users)
    if (viewed or read_later) and _has_changed(op.values[operand], result):
        op.freeze(result.axes, 'changed in place through a view')
    return result


def _is_view(node: Node) -> bool:
    """Whether a tensor is a view of one computed before it."""
    made = node.args[0] if node.target is getitem else node
    return isinstance(made, Node) and getattr(made.target, 'is_view', False)


def _has_changed(before: Value, after: Value) -> bool:
    """Whether an op has changed the state or the sites of channels."""
    for axis in after.axes:
        old = before.along(axis.dim)
        if old is None or axis.sites != old.sites or (axis.state != old.state).any():
            return True
    return False
