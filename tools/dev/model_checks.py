"""Parts of checking a model, in the tests as in the sweeps: random weights, inputs and removals, and an error measure.

Needs torch only, and draws the same numbers in every run.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmprune_gates.channels import ChannelGraph

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
STATISTICS = {'running_mean', 'running_var'}


@torch.no_grad()
def randomize_(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every tensor values that expose any slip; signals keep their size through deep nets.

    Norms get statistics and an affine as after training, gates and plain vectors values around one, biases around zero.
    Buffers that are constants of the architecture stay.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor, low: float, high: float) -> Tensor:
        return tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    for module in model.modules():
        buffers = [(name, buffer) for name, buffer in module.named_buffers(recurse=False) if name in STATISTICS]
        for name, tensor in (*module.named_parameters(recurse=False), *buffers):
            if not tensor.is_floating_point():
                continue
            if name == 'running_mean' or name.endswith('bias'):
                uniform(tensor, -0.3, 0.3)
            elif tensor.dim() > 1 and tensor[0].numel() > 1:
                transposed = isinstance(module, TRANSPOSED)  # its first dimension reads
                fan_in = tensor.numel() // max(tensor.shape[:2]) if transposed else tensor[0].numel()
                uniform(tensor, -1, 1).mul_((6 / fan_in) ** 0.5)
            else:
                uniform(tensor, 0.5, 1.5)
    return model


def example(shape, batch: int = 2, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """(N, C, H, W) random inputs, for a ``shape`` of (C, H, W)."""
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def random_kept(graph: ChannelGraph, seed: int = 0, share: float | None = 0.5) -> dict[str, Tensor]:
    """A random mask for every free group, at least one channel kept.

    Args:
        graph: The channel graph.
        seed: Seed of the random numbers.
        share: Share of each group's channels to keep; None draws one between 0.5 and 0.7 for each group.
    """
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for group in graph.free:
        own = 0.5 + 0.2 * float(torch.rand((), generator=generator)) if share is None else share
        order = torch.randperm(group.size, generator=generator)
        kept[group.name] = order < max(1, round(own * group.size))
    return kept


def relative_error(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest deviation, relative to the largest value of the same output.

    Raises:
        ValueError: Numbers of outputs or shapes differ, or an output proves nothing: not finite, or all zeros.
    """
    errors = []
    for a, b in zip(found, expected, strict=True):
        if a.shape != b.shape:
            raise ValueError(f'an output has shape {tuple(a.shape)}, expected {tuple(b.shape)}')
        if not b.isfinite().all() or not b.any():
            raise ValueError('an output of the reference is not finite, or zero')
        if not a.isfinite().all():  # a NaN error would not be the largest
            raise ValueError('an output is not finite, but that of the reference is')
        errors.append(float((a - b).abs().max() / b.abs().max()))
    return max(errors)
