"""One pruner for any training loop: it watches the gates' gradients, moves them after each step, and slims at the end.

Example::

    pruner = GDP(model, example_inputs, optimizer, total_steps=10_000, target_macs=0.4)
    for x, y in batches:
        criterion(model(x), y).backward(); optimizer.step(); optimizer.zero_grad(); pruner.step()
    report = pruner.finish()
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from mmprune_gates.budget import Controller, Cost, Criterion, MACs
from mmprune_gates.budget.criteria import Reduce, alone
from mmprune_gates.channels.calls import Forward, Inputs, call_options
from mmprune_gates.channels.kept import Kept
from mmprune_gates.checks import patterns
from mmprune_gates.gates import (
    Evidence,
    Gate,
    PolarizationGate,
    attach_gates,
    detach_gates,
    fold_gates,
    gates_of,
    has_gates,
)
from mmprune_gates.gates.attach import NAME, merged
from mmprune_gates.pruning.divergence import Divergence
from mmprune_gates.pruning.ranks import check_ranks
from mmprune_gates.pruning.refusals import (
    check_kind,
    check_reached,
    check_trainable,
    check_whole,
    refuse_hidden_groups,
    refuse_wrapped,
)
from mmprune_gates.pruning.shrink import has_left, shrink, shrunk_in, still_to_leave
from mmprune_gates.slimming import slim_model, trace_channels
from mmprune_gates.slimming.parity import copied, exact_outputs, relative_error, tolerance
from mmprune_gates.slimming.removal import train_constants
from mmprune_gates.slimming.stage import ERRORS

LOOK = 50  # steps between two checks for divergence


class Pruner:
    """Base of the pruning methods; a subclass creates its controller and implements :meth:`step`.

    Args:
        model: The model in training, without a distributed wrapper. Gates are attached unless it has some.
        example_inputs: As in :func:`~mmprune_gates.trace_channels`; not needed where gates are attached, and
            :meth:`finish` is not called.
        optimizer: The optimiser of the model.
        forward, train_forward, units, attention: As in :func:`~mmprune_gates.trace_channels`.
        exclude: Shell patterns of module paths that are kept whole.

    Attributes:
        gate: The kind of gate that the method moves.
        ends_at_one: Whether gates that are still open once the method has settled are exactly 1, and stay so.
        gates: The gates.
        controller: Closes the gates.
        loss_scale: Factor of the loss in the next backward; set it where a gradient scaler is used.

    Raises:
        ValueError: Gates of another kind, gates that something else moves, layers that the trace has missed, channels
            that have left already, or an optimiser that leaves its parameters to another.
    """

    gate: type[Gate] = PolarizationGate
    ends_at_one = False
    controller: Controller

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Inputs | None,
        optimizer: torch.optim.Optimizer,
        forward: Forward | None = None,
        train_forward: Forward | None = None,
        units: str = 'channels',
        attention: str = 'heads',
        exclude: str | Sequence[str] = (),
    ) -> None:
        refuse_hidden_groups(optimizer)
        refuse_wrapped(model)
        self.model, self.optimizer = model, optimizer
        self.forwards: tuple[Forward | None, ...] = (forward,)
        self.inputs = None if example_inputs is None else call_options(example_inputs)
        self.compare_too(train_forward)
        self.attached = not has_gates(model)
        if not self.attached:
            graph = gates_of(model).graph
        elif example_inputs is not None:
            graph = trace_channels(model, example_inputs, forward, train_forward, units, attention, trains=True)
        else:
            raise ValueError(f'{type(self).__name__}: give example_inputs, or attach gates to the model first')
        check_reached(model, graph, patterns('exclude', exclude))
        if self.attached:
            expected = self.outputs(model)
            attach_gates(model, graph, self.gate)
            self.refuse_changed(expected)
        self.gates, self.whole_params = gates_of(model), count_parameters(model)
        check_kind(self.gates, self.gate, type(self).__name__)
        check_whole(self.gates)
        check_trainable(self.gates)
        self.gates.claim(type(self).__name__)
        self.evidence, self.divergence = Evidence(model, self.gates), Divergence(model)
        self.loss_scale = 1.0
        self.done = 0  # steps
        self.grads: dict[str, Tensor] = {}
        self.handles: list = []
        self.watch_gates()

    def compare_too(self, forward: Forward | None) -> None:
        """Compare outputs of a training pass as well, unless it runs in training mode only."""
        if forward is None or self.inputs is None:
            return
        with suppress(*ERRORS):
            exact_outputs(self.model, forward, self.inputs)
            self.forwards = (*self.forwards, forward)

    def outputs(self, model: nn.Module) -> list[Tensor]:
        """Outputs of all passes, to compare the model with another; empty if no example inputs are known."""
        if self.inputs is None:
            return []
        return [output for forward in self.forwards for output in exact_outputs(model, forward, self.inputs)]

    def refuse_changed(self, expected: list[Tensor]) -> None:
        """Detach the gates again if the model does not compute with open gates what it did before.

        Raises:
            ValueError: It does not.
        """
        if not all(bool(output.isfinite().all()) for output in expected):
            return  # nothing can be told; training says what is wrong
        cause, failed = 'computes something else', None
        try:
            error = relative_error(expected, self.outputs(self.model))
        except ERRORS as raised:
            error, failed = inf, raised
            cause = f'fails ({type(raised).__name__}: {raised})'
        if not error <= tolerance(expected):
            detach_gates(self.model)
            raise ValueError(
                f'{type(self.model).__name__} {cause} with a submodule {NAME!r}. If its forward runs over its '
                'children, wrap the model in a module of your own, and prune that one'
            ) from failed

    @contextmanager
    def released_if_it_fails(self) -> Iterator[None]:
        """Give the gates up after an error, so that the next pruner can have them; detach those attached here."""
        try:
            yield
        except BaseException:
            for handle in self.handles:
                handle.remove()
            self.gates.owner = None
            if self.attached:
                detach_gates(self.model)
            raise

    def watch_gates(self) -> None:
        """Record the gradients of all gates from now on."""
        for handle in self.handles:
            handle.remove()
        names = list(self.evidence.sizes)  # of the groups whose gates move
        self.handles = [self.gates[name].theta.register_hook(self.watch(name)) for name in names]

    def shrink(self) -> dict[str, Any]:
        """Remove the closed channels from the model, the optimiser's state and everything that depends on them.

        From then on the run pays only for the remaining channels. Once the method has settled, training continues as it
        would have; before, channels closed at the moment leave as well and cannot open again. Under a distributed
        wrapper the model has to be wrapped again.

        Returns:
            MACs and parameters before and after, and the parity error; None where no example inputs are known.

        Raises:
            RuntimeError: Nothing is closed, or the output has changed.
            ValueError: The optimiser has state that cannot be narrowed; nothing has changed then.
        """
        kept = self.controller.staying()
        if kept.vector.all():
            raise RuntimeError(f'{type(self).__name__}: no gate is closed, so nothing can leave the model')
        macs, params = self.gates.graph.macs(), count_parameters(self.model)
        self.check()
        expected = self.outputs(self.model)
        self.narrow(kept, self.controller.settled)
        error = None
        if expected:
            error, most = relative_error(expected, self.outputs(self.model)), tolerance(expected)
            if not error <= most:
                raise RuntimeError(
                    f'the output has changed by {error:.2e} (relative, at most {most:.0e}) when channels left the '
                    'model; go on from the last checkpoint with shrink=False'
                )
        return {
            'macs': {'before': macs, 'after': self.gates.graph.macs()},
            'params': {'before': params, 'after': count_parameters(self.model)},
            'parity_error': error,
        }

    def is_near_target(self) -> bool:
        """Whether the target is nearly met, by the cost, and gates can still move: the time to measure the model."""
        raise NotImplementedError

    def leaving(self) -> float:
        """Share of the current model's MACs that :meth:`shrink` would remove."""
        graph = self.gates.graph
        return 1 - graph.macs(self.controller.staying()) / graph.macs()

    def narrow(self, kept: Kept, settled: bool) -> None:
        """Remove the channels that are not kept, and continue with the remaining gates."""
        self.gates = shrink(self.model, kept, self.optimizer)
        if settled and self.ends_at_one:
            self.gates.rest()
        self.controller.narrow(self.gates, kept)
        self.evidence = Evidence(self.model, self.gates)
        self.watch_gates()
        self.grads = {}

    def reshape(self, shrunk: Sequence[Tensor], settled: bool) -> None:
        """Give the model the shape it had when a state was saved; its weights are loaded afterwards.

        Args:
            shrunk: What was kept each time that channels left it, as in :meth:`state_dict`.
            settled: Whether the method had settled.

        Raises:
            ValueError: The state belongs to another model.
        """
        for kept in still_to_leave(self.model, shrunk):
            self.narrow(kept, settled)

    def watch(self, name: str):
        """A hook that records the gradient of a group's gate."""

        def keep(grad: Tensor) -> Tensor:
            own = grad.detach() / self.loss_scale
            self.grads[name] = self.grads[name] + own if name in self.grads else own
            return self.altered(name, grad)

        return keep

    def altered(self, name: str, grad: Tensor) -> Tensor:
        """The gradient of a group's gate that the optimiser should see."""
        return grad

    def taken_grads(self) -> dict[str, Tensor]:
        """Take the gradients recorded since the last step, and note them as evidence that the gates act.

        Raises:
            Diverged: Parameters are not finite; checked every ``LOOK`` steps.
        """
        grads, self.grads = self.grads, {}
        finite = self.evidence.note(grads)
        self.divergence.note(finite, self.done)
        if self.done % LOOK == LOOK - 1:
            self.divergence.check(self.done + 1)
        return grads

    def step(self) -> str | None:
        """Act after a step of the optimiser.

        Returns:
            The phase that has ended, if the method has named phases and one has.

        Raises:
            GatesDoNotAct: The gates have no effect, or no finite gradient; checked before gates move.
        """
        raise NotImplementedError

    def check(self) -> None:
        """Check that the model is finite, the gates act, and the closed channels are those chosen, within the limits.

        Raises:
            Diverged: Parameters are not finite.
            GatesDoNotAct: Gates do not act.
            RuntimeError: The closed channels are not those chosen.
        """
        self.divergence.check(self.done)
        self.evidence.check()
        self.controller.check()

    def check_ranks(self) -> None:
        """Check that all ranks of a distributed run have the same gates and state; every rank has to call this.

        Raises:
            RanksDiffer: They differ.
        """
        check_ranks({**self.state_dict(), **self.gates.state_dict(prefix='gates.')})

    def bound(
        self, cost: Cost | None, criterion: Criterion | None, reduce: Reduce = alone
    ) -> tuple[Cost, Criterion | None]:
        """Cost and criterion of the method, bound to the model.

        Args:
            cost: The cost; multiply-accumulates by default.
            criterion: The criterion, if any.
            reduce: Averages over ranks what each has observed; does nothing where gradients are means already.
        """
        cost = (cost or MACs()).bind(self.gates.graph, self.model)
        return cost, criterion and criterion.bind(self.gates, self.model, reduce)

    def finish(self) -> dict[str, Any]:
        """Fold the gates into the weights and remove closed channels, in place, after checking the output of a copy.

        Parameters that have become narrower are new ones: to train on, make a new optimiser.

        Returns:
            MACs and parameters before and after, the parity error, the channels kept of each group, and the
            specification that ``SlimModel`` takes.

        Raises:
            RuntimeError: The slim model's output differs, or the gates have not settled; the model is unchanged.
            ValueError: No example inputs were given.
        """
        if self.inputs is None:
            raise ValueError(f'{type(self).__name__}.finish compares outputs: give example_inputs')
        if not self.controller.settled:
            summary = self.controller.summary()
            raise RuntimeError(f'{type(self).__name__}: the gates have not settled after {self.done} steps: {summary}')
        self.check()
        graph, kept = self.gates.graph, self.controller.staying()
        expected = self.outputs(self.model)
        trial = copied(self.model)
        fold_gates(trial)
        slim_model(trial, graph, kept)
        error, most = relative_error(expected, self.outputs(trial)), tolerance(expected)
        if not error <= most:
            raise RuntimeError(f'the slim model differs from the gated one by {error:.2e} (at most {most:.0e})')
        for handle in self.handles:
            handle.remove()
        gates = self.gates
        fold_gates(self.model)
        spec = slim_model(self.model, graph, kept)
        train_constants(self.model)
        return {
            'macs': {'before': gates.whole.macs(), 'after': graph.macs(kept)},
            'params': {'before': self.whole_params, 'after': count_parameters(self.model)},
            'parity_error': error,
            'kept': gates.kept_of_whole(kept).indices(),
            **merged(gates.spec, spec),
        }

    @property
    def method(self) -> str:
        """Name of the method; its state fits no other."""
        return type(self).__name__

    def state_dict(self) -> dict[str, Any]:
        """State to resume from, apart from those of model and optimiser; tensors and plain values only."""
        return {
            'method': self.method,
            'step': self.done,
            'shrunk': [kept.vector for kept in self.gates.shrunk],
            **self.controller.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state; load those of model and optimiser separately, afterwards.

        Channels that had left the saved model leave this one here.

        Raises:
            ValueError: Channels have left this model that the saved one still had.
        """
        state = tree_map_only(Tensor, Tensor.cpu, state)  # as it was saved, wherever it was loaded
        if state.get('method', self.method) != self.method:
            raise ValueError(f'the state is one of {state["method"]}, not of {self.method}')
        self.reshape(shrunk_in(state), has_left(state))
        self.done = int(state['step'])
        self.controller.load_state_dict(state)


def count_parameters(model: nn.Module) -> int:
    """Number of parameters of a model, gates not counted."""
    return sum(parameter.numel() for name, parameter in model.named_parameters() if not name.startswith(f'{NAME}.'))
