"""Inline nested graphs: ``torch.export`` captures the code under a context as a graph of its own.

``with torch.no_grad()``, ``torch.autocast`` and activation checkpointing (``torch.utils.checkpoint``, mmengine's
``with_cp``) do not change what is computed, so their graphs are inlined into the enclosing one. Graphs of control flow
(``torch.cond`` and the like) are left alone: ops without a rule.
"""

from __future__ import annotations

from operator import getitem
from typing import Any

from torch.fx import GraphModule, Node

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
    for user in list(call.users):
        if user.target is not getitem:
            raise NotImplementedError(f'{call.target}: its results are used by {user.target} as a whole')
        number = user.args[1]
        user.replace_all_uses_with(results[number])
        graph.erase_node(user)
    graph.erase_node(call)
