"""Products with gate values that modules do not save for the backward: they are computed again there.

The gate's own backward needs the tensor that it scales, and what reads the product would save that as well: gates would
cost as much memory as the tensors they stand on. So while a gated module runs, what autograd saves of the product is
replaced by its two factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


@dataclass(frozen=True, eq=False)
class Product:
    """A tensor times a factor that broadcasts.

    Attributes:
        tensor, factor: The two, detached.
        result: Their product, detached.
    """

    tensor: Tensor
    factor: Tensor
    result: Tensor

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor is the product, or a view of it."""
        if tensor.layout != torch.strided or tensor.dtype != self.result.dtype:
            return False
        return tensor.untyped_storage() is self.result.untyped_storage()


@dataclass(frozen=True, eq=False)
class Saved:
    """What autograd holds of a tensor.

    Attributes:
        tensors: The tensor, detached, since a result that its own backward holds would never be freed; or the factors
            of a product in place of it.
        versions: How often each had been changed in place. Autograd does not check that where hooks decide.
        layout: Sizes, strides and offset of a product, or of a view of it.
    """

    tensors: tuple[Tensor, ...]
    versions: tuple[int, ...]
    layout: Any = None

    @classmethod
    def of(cls, *tensors: Tensor, layout: Any = None) -> Saved:
        """What to hold of a tensor, or of two factors and the layout of their product."""
        return cls(tensors, tuple(map(version, tensors)), layout)

    def restored(self) -> Tensor:
        """The tensor; a product has the same numbers as the first time.

        Raises:
            RuntimeError: It has been changed in place since.
        """
        if self.versions != tuple(map(version, self.tensors)):
            shapes = ', '.join(str(tuple(tensor.shape)) for tensor in self.tensors)
            raise RuntimeError(
                'one of the variables needed for gradient computation has been modified by an inplace operation '
                f'after a gated module had read it: a tensor of shape {shapes}'
            )
        first, *others = self.tensors
        return (first * others[0]).as_strided(*self.layout) if others else first


RUNNING: list[Product] = []  # of the modules whose forward runs, innermost last


class Recompute:
    """The products of one gated module, from the beginning of its forward to :meth:`end`.

    They are saved as usual where this could not work: while something else, such as activation checkpointing, decides
    what autograd saves, and in compiled code; and where it is not worth it: a vector, such as a norm's weight.
    """

    def __init__(self) -> None:
        self.products: list[Product] = []
        self.hooks: saved_tensors_hooks | None = None

    def multiply(self, tensor: Tensor, factor: Tensor) -> Tensor:
        """The product; its readers in the module do not save it."""
        result = tensor * factor
        saves_both = factor.requires_grad and torch.is_grad_enabled()  # the tensor, for the factor's gradient, as well
        if torch.compiler.is_compiling() or not saves_both or tensor.dim() == 1:
            return result
        if self.begin():
            product = Product(tensor.detach(), factor.detach(), result.detach())
            self.products.append(product)
            RUNNING.append(product)
        return result

    def begin(self) -> bool:
        """Decide what autograd saves, unless something else does."""
        autograd: Any = torch._C._autograd  # noqa: SLF001 (there is no public way to ask)
        active = autograd._top_saved_tensors_default_hooks(True)  # noqa: SLF001
        if active is not None:
            return active[0] is pack
        if not autograd._saved_tensors_hooks_is_enabled():  # noqa: SLF001 (torch.func allows no hooks)
            return False
        self.hooks = saved_tensors_hooks(pack, Saved.restored)
        self.hooks.__enter__()
        return True

    def end(self) -> None:
        """From now on, autograd saves everything as usual."""
        for product in self.products:
            RUNNING.remove(product)
        self.products.clear()
        if self.hooks is not None:
            self.hooks.__exit__()
            self.hooks = None


def version(tensor: Tensor) -> int:
    """How often a tensor has been changed in place; 0 if torch does not count."""
    return 0 if tensor.is_inference() else tensor._version  # noqa: SLF001 (there is no other name for it)


def pack(tensor: Tensor) -> Saved:
    """What autograd holds of a tensor that it saves."""
    for product in reversed(RUNNING):
        if product.holds(tensor):
            layout = tensor.shape, tensor.stride(), tensor.storage_offset()
            return Saved.of(product.tensor, product.factor, layout=layout)
    return Saved.of(tensor.detach())
