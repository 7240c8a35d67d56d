"""Inline nested graphs and composite ops.

``torch.export`` captures the code under a context as a graph of its own. ``with torch.no_grad()``, ``torch.autocast``
and activation checkpointing (``torch.utils.checkpoint``, mmengine's ``with_cp``) do not change what is computed, so
their graphs are inlined into the enclosing one. Graphs of control flow (``torch.cond`` and the like) are left alone:
ops without a rule.

It also keeps ops that torch composes of others (``torch.movedim`` is a permutation). Those without a rule of their own
are replaced by what they are composed of.
"""

from __future__ import annotations

from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from mmprune_gates.channels.op import op_name
from mmprune_gates.channels.rules import TABLE

CONTEXTS = ('wrap_with_set_grad_enabled', 'wrap_with_autocast', 'tag_activation_checkpoint', 'wrap')


def inline_contexts(module: GraphModule) -> None:
    """Inline the graphs of contexts into the graph of a module, in place, innermost first."""
    for node in list(module.graph.nodes):
        if node.op == 'call_function' and str(node.target) in CONTEXTS:
            inline(module, node)


def inline(module: GraphModule, call: Node) -> None:
    """Replace a call of a nested graph by the nodes of that graph."""
    graph = module.graph
    body = next(source for source in call.all_input_nodes if source.op == 'get_attr')
    inner = getattr(module, str(body.target))
    inline_contexts(inner)
    inputs = inner.graph.find_nodes(op='placeholder')
    first = call.args.index(body) + 1
    values = dict(zip(inputs, call.args[first:], strict=True))
    with graph.inserting_before(call):
        results: Any = graph.graph_copy(inner.graph, values)
    replace_call(graph, call, results)


def replace_call(graph: Graph, call: Node, results: Any) -> None:
    """Let what reads a call, or each of its results, read other nodes; the call goes."""
    if isinstance(results, Node):
        call.replace_all_uses_with(results)
    for user in list(call.users):
        if user.target is not getitem:
            raise NotImplementedError(f'{call.target}: its results are used by {user.target} as a whole')
        number = user.args[1]
        user.replace_all_uses_with(results[number])
        graph.erase_node(user)
    graph.erase_node(call)


def inline_composites(module: GraphModule) -> None:
    """Replace composite ops without a rule by the ops that they are composed of, if all of these have one, in place."""
    for node in list(module.graph.nodes):
        if node.op == 'call_function' and op_name(node) not in TABLE and is_composite(node.target):
            parts = composition(node)
            if parts is not None:
                inline_composition(module.graph, node, parts)


def is_composite(target: Any) -> bool:
    """Whether torch composes an op of others on every device, in training as well."""
    return isinstance(target, OpOverload) and target.has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd)


def composition(call: Node) -> Graph | None:
    """What a call of a composite op is composed of; None if torch cannot tell, or if one of these ops has no rule.

    Ops whose results are no tensors (sizes) are not composed of others.
    """
    target: Any = call.target
    sources = call.all_input_nodes

    def compose(*tensors: Tensor) -> Any:
        tensor_of = dict(zip(sources, tensors, strict=True))
        args, kwargs = map_arg((call.args, call.kwargs), tensor_of.__getitem__)
        return target.decompose(*args, **kwargs)

    values = [source.meta['val'] for source in sources]
    try:
        with values[0].fake_mode, torch.no_grad():
            graph = make_fx(compose)(*values).graph
    except Exception:  # noqa: BLE001 (whatever it is: the op stays, without a rule)
        return None
    results = tree_leaves(graph.output_node().args)
    gives_tensors = all(isinstance(result, Node) for result in results)
    parts = [node for node in graph.nodes if node.op == 'call_function' and node.target is not getitem]
    has_rules = all(op_name(part) in TABLE for part in parts)
    return graph if gives_tensors and has_rules else None


def inline_composition(graph: Graph, call: Node, parts: Graph) -> None:
    """Replace a call by other nodes, which belong to the module that makes the call."""
    inputs = parts.find_nodes(op='placeholder')
    values: dict[Node, Node] = dict(zip(inputs, call.all_input_nodes, strict=True))
    with graph.inserting_before(call):
        results: Any = graph.graph_copy(parts, values)
    for part, node in values.items():
        if part.op == 'call_function':
            node.meta['nn_module_stack'] = call.meta.get('nn_module_stack')
    replace_call(graph, call, results)
