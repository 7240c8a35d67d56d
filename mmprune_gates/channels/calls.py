"""Calls of models and modules, and the tensors among their inputs and outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

Forward = Callable[..., Any]
Options = tuple[tuple, dict[str, Any]]
Inputs = Tensor | tuple | list | Mapping[str, Any]


def call_options(example_inputs: Inputs) -> Options:
    """Positional and keyword arguments from example inputs: a tensor, a sequence, or a mapping of keywords.

    Raises:
        TypeError: The inputs hold no tensor with a batch dimension.
    """
    if isinstance(example_inputs, Mapping):
        options: Options = (), dict(example_inputs)
    elif isinstance(example_inputs, (tuple, list)):
        options = tuple(example_inputs), {}
    else:
        options = (example_inputs,), {}
    if not any(isinstance(leaf, Tensor) and leaf.dim() for leaf in tree_leaves(options)):
        raise TypeError(
            'example_inputs must hold tensors, with the batch as first dimension; '
            f'got {type(example_inputs).__name__}: pass a tensor, a tuple of positional inputs, or a dict of keyword '
            'inputs'
        )
    return options


def batch_size(options: Options) -> int:
    """Size of the first dimension of the first tensor that has one."""
    tensors = [leaf for leaf in tree_leaves(options) if isinstance(leaf, Tensor)]
    return next(tensor.shape[0] for tensor in tensors if tensor.dim())


def first_sample(options: Options) -> Options:
    """The inputs cut down to a batch of one."""
    batch = batch_size(options)

    def first(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == batch:
            return leaf[:1]
        return leaf

    return tree_map(first, options)


def on_meta(options: Options) -> Options:
    """The inputs with their tensors on the meta device, without data."""
    return tree_map_only(Tensor, lambda leaf: leaf.to('meta'), options)


def run(model: nn.Module, forward: Forward | None, options: Options) -> list[Tensor]:
    """Call a model, or ``forward`` on it, and return all output tensors."""
    args, kwargs = options
    if forward is None:
        outputs = model(*args, **kwargs)
    else:
        outputs = forward(model, *args, **kwargs)
    return tensors_in(outputs)


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Training or evaluation mode; afterwards each module is in its own again."""
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def gpus_of(model: nn.Module) -> list[torch.device]:
    """The GPUs that hold parameters of a model."""
    return list({tensor.device for tensor in model.parameters() if tensor.is_cuda})


@contextmanager
def same_draws(model: nn.Module) -> Iterator[None]:
    """Draw the same random numbers every time, on the CPU and the model's GPUs; leave the random state as it was."""
    gpus = gpus_of(model)
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed all GPUs, which are not restored
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(0)
        yield


def floating_tensor(model: nn.Module) -> Tensor:
    """A parameter with fractions, whose device and precision added tensors take; a number on the CPU without any."""
    floating = (parameter for parameter in model.parameters() if parameter.is_floating_point())
    return next(floating, torch.zeros(()))


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors of nested outputs: sequences, mappings and dataclasses, in order.

    Raises:
        TypeError: A part is of a type whose tensors cannot be found.
    """
    if isinstance(value, Tensor):
        return [value]
    if value is None or isinstance(value, (bool, int, float, str, torch.Size)):
        return []
    if isinstance(value, Mapping):
        parts: Iterable[Any] = value.values()
    elif isinstance(value, (list, tuple)):
        parts = value
    elif dataclasses.is_dataclass(value):
        parts = [getattr(value, field.name) for field in dataclasses.fields(value)]
    else:
        raise TypeError(
            f'the output holds a {type(value).__name__}, whose tensors cannot be found: pass a `forward` that returns '
            'tensors, or sequences, dicts or dataclasses of them'
        )
    found = []
    for part in parts:
        found += tensors_in(part)
    return found


@contextmanager
def noted_calls(model: nn.Module, plain: dict[str, Options], odd: set[str]) -> Iterator[None]:
    """Record how each module is called inside the context.

    Args:
        model: The model.
        plain: Filled with module path -> other arguments, positional and keyword, for each module that takes a single
            tensor, as its first argument, and returns a tensor.
        odd: Filled with the paths of modules that are called in any other way.
    """

    def note(path: str, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if len(tensors) == 1 and args and args[0] is tensors[0] and isinstance(output, Tensor):
            plain[path] = (args[1:], kwargs)
        else:
            odd.add(path)

    handles = []
    for path, module in model.named_modules():
        hook = partial(note, path)  # a module with two names may be a copy while it is exported
        handles.append(module.register_forward_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
