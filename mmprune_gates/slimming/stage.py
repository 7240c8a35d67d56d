"""Ways to run a model, cheapest first, and the line of model code at which a run fails."""

from __future__ import annotations

import copy
import os
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from mmprune_gates.channels.calls import Forward, Options, first_sample, on_meta, run, same_draws
from mmprune_gates.gates.stand_in import given
from mmprune_gates.slimming.without_data import WithoutData

PACKAGE = os.path.dirname(os.path.dirname(__file__))
NOT_THE_MODEL = (os.path.dirname(torch.__file__) + os.sep, PACKAGE + os.sep)
ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AssertionError, AttributeError, NotImplementedError)


class Failure(NamedTuple):
    """Why a narrower copy fails: ``file:number`` of a line of model code, and what the line does."""

    line: str
    how: str


@dataclass(frozen=True)
class Stage:
    """One way to run a model's passes.

    Attributes:
        model: A copy of the model, on the meta device or where the model is.
        options: Positional and keyword arguments to call it with.
        modes: (forward, whether in training mode) of each pass.
    """

    model: nn.Module
    options: Options
    modes: tuple[tuple[Forward | None, bool], ...]

    def run(self, model: nn.Module) -> list[torch.Size]:
        """Shapes of all outputs of a model that is run in place of the copy."""
        found = []
        eager = torch.compiler.set_stance('force_eager')  # for compiled parts, and torch.cond
        with eager, torch.no_grad():
            for forward, training in self.modes:
                model.train(training)  # train() of some models does not return the model
                options = tree_map_only(Tensor, Tensor.clone, self.options)  # a model may change its input in place
                with same_draws(model):
                    outputs = run(model, forward, options)
                found += [tensor.shape for tensor in outputs]
        return found

    @cached_property
    def first_calls(self) -> dict[str, Options]:
        """Module path -> arguments of its first call, for all modules called; the model itself need not be one."""
        calls: dict[str, Options] = {}

        def note(path: str, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            calls.setdefault(path, given((args, kwargs)))

        model = copy.deepcopy(self.model)
        for path, module in model.named_modules():
            module.register_forward_pre_hook(partial(note, path), with_kwargs=True)
        with WithoutData():
            self.run(model)
        return calls


def stages(
    model: nn.Module, passes: Sequence[Forward | None], options: Options, trains: bool = False
) -> Iterator[Stage]:
    """All ways to run a model, the cheapest and most telling first.

    A single sample tells more than several: a ``view`` to the full width can turn two of half the width into one.
    If the model trains, but without a pass of its own for that, inference is also run in training mode, if it can be.

    Args:
        model: The model.
        passes: ``forward(model, *args, **kwargs)`` of inference (None for a plain call), then that of training, if any.
        options: Positional and keyword arguments of a call.
        trains: Whether it trains.
    """
    inference, *rest = passes
    own = not rest and trains
    modes_of_training = (False, True) if rest or own else (False,)
    ways = list(product((True, False), (first_sample(options), options), modes_of_training))
    if own:
        rest = [inference]
    if rest:
        ways.sort(key=lambda way: not way[2])
    for without_data, inputs, training in ways:
        modes = [(inference, False)]
        modes += [(forward, training) for forward in rest]
        if without_data:
            yield Stage(copied_without_data(model), on_meta(inputs), tuple(modes))
        else:
            yield Stage(copy.deepcopy(model), inputs, tuple(modes))


def copied_without_data(model: nn.Module) -> nn.Module:
    """A copy on the meta device, made without copying any tensor's data."""
    tensors = {}
    for buffer in model.buffers():
        tensors[id(buffer)] = buffer.detach().to('meta')
    for parameter in model.parameters():
        empty = parameter.detach().to('meta')
        tensors[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
    return copy.deepcopy(model, tensors)


def line_of_model_code(error: BaseException) -> str:
    """``file:number`` of the innermost line outside torch and this package; if there is none, of the innermost."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(NOT_THE_MODEL)]
    innermost = own[-1] if own else frames[-1]
    file = os.path.basename(innermost.filename)
    return f'{file}:{innermost.lineno}'
