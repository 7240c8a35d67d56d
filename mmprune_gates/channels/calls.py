"""How modules are called: only what takes one tensor and returns one can be wrapped or replaced without knowing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

Options = tuple[tuple, dict[str, Any]]


@contextmanager
def noted_calls(model: nn.Module, plain: dict[str, Options], odd: set[str]) -> Iterator[None]:
    """Note how each module is called meanwhile.

    Args:
        model: The model.
        plain: Gets the path of each module that is called with a tensor, its first argument, and nothing else but
            options, and returns a tensor; and those options, positional and by keyword.
        odd: Gets the paths of modules that were called in another way.
    """

    def note(path: str, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if len(tensors) == 1 and args and args[0] is tensors[0] and isinstance(output, Tensor):
            plain[path] = (args[1:], kwargs)
        else:
            odd.add(path)

    # A module with two names may be a copy while it is exported: the hook brings the path along.
    handles = [
        module.register_forward_hook(partial(note, path), with_kwargs=True) for path, module in model.named_modules()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
