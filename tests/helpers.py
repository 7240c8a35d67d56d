"""What the tests of several layers need: non-trivial weights, random removals, outputs side by side."""

from __future__ import annotations

import copy
from functools import cache

import torch
from torch import nn

from mmprune_gates import masked_copy, slim_model, trace_channels


def randomize_(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every tensor values that no slip can hide behind; signals keep their size through deep nets.

    Weights keep their initialisation's scale; norms get statistics and an affine as after training, gates and
    plain parameters values around one, biases around zero.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor, low, high):
        return tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for module in model.modules():
            for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                if not tensor.is_floating_point():
                    continue
                if name == 'running_var':
                    uniform(tensor, 0.5, 1.5)
                elif name == 'running_mean' or name.endswith('bias'):
                    uniform(tensor, -0.3, 0.3)
                elif tensor.dim() > 1 and tensor[0].numel() > 1:
                    fan_in = tensor.numel() // max(tensor.shape[:2]) if is_transposed(module) else tensor[0].numel()
                    uniform(tensor, -1, 1).mul_((6 / fan_in) ** 0.5)
                else:
                    uniform(tensor, 0.5, 1.5)
    return model


def is_transposed(module: nn.Module) -> bool:
    """Whether a weight's first dimension reads."""
    return isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))


def example(shape, batch: int = 2, dtype=torch.float64, seed: int = 0) -> torch.Tensor:
    """A random input."""
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def random_kept(graph, seed: int = 0, share: float = 0.5) -> dict[str, torch.Tensor]:
    """A random mask for every free group, at least one channel kept."""
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for group in graph.free:
        number = max(1, round(share * group.size))
        kept[group.name] = torch.zeros(group.size, dtype=torch.bool)
        kept[group.name][torch.randperm(group.size, generator=generator)[:number]] = True
    return kept


def flat(outputs) -> list[torch.Tensor]:
    """All tensors of nested outputs."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return [tensor for value in values if value is not None for tensor in flat(value)]


def call(model: nn.Module, inputs, forward=None) -> list[torch.Tensor]:
    """All outputs of a model in evaluation mode."""
    model.eval()
    with torch.no_grad():
        return flat(forward(model, inputs) if forward else model(inputs))


def relative_error(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Largest deviation, relative to the largest value of the same output."""
    assert len(found) == len(expected)
    errors = []
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and b.isfinite().all() and b.abs().max() > 0
        errors.append(float((a - b).abs().max() / b.abs().max()))
    return max(errors)


def removal_errors(model, graph, inputs, kept, forward=None) -> tuple[float, float, nn.Module, dict]:
    """What is left of a model after a removal, beside the reference.

    Returns:
        Error of the slim model, the reference's own distance from the whole model (0 would show nothing), the
        slim model and its specification.
    """
    whole = call(model, inputs, forward)
    expected = call(masked_copy(model, graph, kept), inputs, forward)
    slim = copy.deepcopy(model)
    spec = slim_model(slim, graph, kept)
    distance = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(expected, whole, strict=True))
    return relative_error(call(slim, inputs, forward), expected), distance, slim, spec


@cache
def traced(net) -> tuple[nn.Module, object, torch.Tensor]:
    """A toy net in float64 with random values, its channel graph, and an input; not to be changed."""
    torch.manual_seed(0)
    model = randomize_(net().double())
    inputs = example(net.shape)
    return model, trace_channels(model, (inputs,)), inputs


def toy(net) -> tuple[nn.Module, object, torch.Tensor]:
    """A toy net to change, its channel graph, and an input."""
    model, graph, inputs = traced(net)
    return copy.deepcopy(model).eval(), graph, inputs
