"""Memory of a training step: activations saved for the backward, and the most bytes alive at a time."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def saved_bytes(forward: Callable[[], Any]) -> int:
    """Bytes of all tensors that a forward has made and that are alive after it: what it keeps for the backward."""
    with Alive() as alive:
        loss = forward()
    saved = alive.now
    del loss
    return saved


def peak_bytes(step: Callable[[], Any], device: str) -> int:
    """Peak memory of a step beyond that held before it: a GPU's by its allocator, a CPU's by :class:`Alive`."""
    if device == 'cpu':
        with Alive() as alive:
            step()
        return alive.peak
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return torch.cuda.max_memory_allocated() - before


def held_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes held between steps: parameters with the gradients that remain, buffers, and the optimiser's state."""
    grads = [parameter.grad for parameter in model.parameters()]
    everything = [*model.parameters(), *model.buffers(), *grads, dict(optimizer.state)]
    return sum(storage.nbytes() for storage in storages(everything).values())


class Alive(TorchDispatchMode):
    """Counts the bytes of live tensors that ops have made; memory that an op needs inside does not count.

    Attributes:
        now: Bytes alive.
        peak: The most so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an op, and track the storages that it makes."""
        result = func(*args, **(kwargs or {}))
        given = storages((args, kwargs))
        for key, storage in storages(result).items():
            if key not in given:  # no view, and not changed in place
                self.now += storage.nbytes()
                weakref.finalize(storage, self.forget, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def forget(self, size: int) -> None:
        """Subtract a storage that was freed."""
        self.now -= size


def storages(nested: Any) -> dict[int, UntypedStorage]:
    """The storages of all tensors in nested values, each once."""
    tensors = [leaf for leaf in tree_leaves(nested) if isinstance(leaf, Tensor)]
    found = [tensor.untyped_storage() for tensor in tensors]
    return {id(storage): storage for storage in found}
