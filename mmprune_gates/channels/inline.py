"""Graphs within an exported graph: what code runs under a context is exported as a graph of its own.

``with torch.no_grad()``, ``torch.autocast`` and activation checkpointing (``torch.utils.checkpoint``, mmengine's
``with_cp``) do not change what is computed, so their graphs are laid into the one around them. Graphs of control flow
(``torch.cond`` and the like) stay what they are: ops without a rule.
"""

from __future__ import annotations

from operator import getitem

from torch import fx

CONTEXTS = ('wrap_with_set_grad_enabled', 'wrap_with_autocast', 'tag_activation_checkpoint', 'wrap')


def inline_contexts(module: fx.GraphModule) -> None:
    """Lay the graphs of contexts into the graph of a module, in place, innermost first."""
    for node in list(module.graph.nodes):
        if node.op == 'call_function' and str(node.target) in CONTEXTS:
            inline(module, node)


def inline(module: fx.GraphModule, call: fx.Node) -> None:
    """Replace one call of a graph by the nodes of that graph."""
    place = next(number for number, arg in enumerate(call.args) if isinstance(arg, fx.Node) and arg.op == 'get_attr')
    inner: fx.GraphModule = getattr(module, call.args[place].target)
    inline_contexts(inner)
    inputs = inner.graph.find_nodes(op='placeholder')
    values = dict(zip(inputs, call.args[place + 1 :], strict=True))
    with module.graph.inserting_before(call):
        results = module.graph.graph_copy(inner.graph, values)
    for user in list(call.users):
        if user.target is not getitem:
            raise NotImplementedError(f'{call.target}: its results are used by {user.target} as a whole')
        user.replace_all_uses_with(results[user.args[1]])
        module.graph.erase_node(user)
    module.graph.erase_node(call)
