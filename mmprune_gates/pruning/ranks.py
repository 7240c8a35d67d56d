"""Sums over the ranks of a distributed run; in any other run nothing happens."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def sum_over_ranks(tensor: Tensor) -> None:
    """Replace a tensor by its sum over all ranks."""
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return
    on_gpu = distributed.get_backend() == 'nccl' and not tensor.is_cuda
    shared = tensor.to(torch.device('cuda', torch.cuda.current_device())) if on_gpu else tensor
    distributed.all_reduce(shared)
    if shared is not tensor:
        tensor.copy_(shared)


def mean_over_ranks(tensor: Tensor) -> None:
    """Replace a tensor by its mean over all ranks."""
    sum_over_ranks(tensor)
    if distributed.is_available() and distributed.is_initialized():
        tensor.div_(distributed.get_world_size())
