"""Evidence that gates act in training: the model runs the modules they act on, and they receive gradients.

The parity of a slim model does not show that: it holds whatever the gates are. If modules are replaced, fused or
bypassed after gates were attached, the gates have no effect, and which of them to close is decided blindly.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmprune_gates.checks import listed
from mmprune_gates.gates.attach import GateSet
from mmprune_gates.gates.scale import module_at

PATIENCE = 20  # mini-batches after a check that may all overflow in mixed precision, while the loss scale is found


class GatesDoNotAct(RuntimeError):
    """Gates without effect, or without a gradient."""


class Evidence:
    """Observations of the gates since the last check.

    Args:
        model: The model, without a distributed wrapper.
        gates: Its gates.
    """

    def __init__(self, model: nn.Module, gates: GateSet) -> None:
        self.model, self.gates = model, gates
        moving = () if gates.rests else gates.graph.free
        self.sizes = {group.name: gates[group.name].theta.numel() for group in moving}
        self.forget()

    def forget(self) -> None:
        """Discard all observations."""
        self.seen: Tensor | None = None
        self.noted = 0  # mini-batches
        self.came: set[str] = set()  # groups whose gates received any gradient
        for scale in self.gates.scales:
            scale.acted = False

    def note(self, grads: Mapping[str, Tensor]) -> Tensor:
        """Record the gradients of one iteration.

        Args:
            grads: Group name -> gradient of its gate's theta; groups without one are absent.

        Returns:
            Scalar bool tensor, whether all gradients given are finite; does not wait for a GPU.
        """
        if not self.sizes:
            return torch.ones((), dtype=torch.bool)  # all gates rest, or have left with their blocks
        like = next(iter(grads.values()), torch.zeros(()))
        absent = like.new_full((max(self.sizes.values()),), torch.nan)
        rows = []
        for name, size in self.sizes.items():
            row = grads[name].flatten() if name in grads else absent[:size]
            rows.append(row)
        finite = torch.cat(rows).isfinite()
        self.seen = finite if self.seen is None else self.seen | finite
        self.noted += 1
        self.came.update(grads)
        came = sum(self.sizes[name] for name in grads)
        return finite.sum() == came

    def check(self) -> None:
        """Check that every gate has acted and received a finite gradient since the last check, then start over.

        Before the first iteration, only check that the modules the gates act on are still those of the model. A few
        mini-batches whose gradients all overflow prove nothing: then the next check decides.

        Raises:
            GatesDoNotAct: A gate fails the check; the message names modules or groups, and possible causes.
        """
        for scale in self.gates.scales:
            path = scale.placement.module
            if (module := module_at(self.model, path)) is not scale.module:
                raise GatesDoNotAct(
                    f'{path} is a {type(module).__name__} that no gate acts on: it took the place of the '
                    f'{type(scale.module).__name__} that the gate was attached to. Convert norms and fuse layers '
                    'before training begins, or not at all'
                )
        if self.seen is None:
            return  # no iteration yet
        if idle := [scale.placement.module for scale in self.gates.scales if not scale.acted]:
            raise GatesDoNotAct(
                f'the model computes without the gates at {listed(idle)}: these modules were not called. Something '
                'bypasses them (fused kernels, a replaced forward, or code that was compiled before the gates came: '
                'torch.compiler.reset()), or their part of the model does not train'
            )
        finite = dict(zip(self.sizes, self.seen.cpu().split(list(self.sizes.values())), strict=True))
        without = [name for name, own in finite.items() if not own.all()]
        if without and self.came.issuperset(without) and self.noted < PATIENCE:
            return
        if without:
            raise GatesDoNotAct(
                f'no finite gradient has reached the gates of {listed(without)}: the loss is not finite (NaN weights, '
                'a learning rate or loss scale that is too high), or does not depend on them'
            )
        self.forget()
