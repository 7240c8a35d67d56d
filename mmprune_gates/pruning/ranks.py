"""Means over the ranks of a distributed run, and a check that they agree. In any other run both do nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed


class RanksDiffer(RuntimeError):
    """Ranks that should have the same gates and state do not."""


def count_ranks() -> int:
    """Number of ranks of the run; 1 if it is not distributed."""
    running = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if running else 1


def mean_over_ranks(tensor: Tensor) -> None:
    """Replace a tensor by its mean over all ranks."""
    if count_ranks() == 1:
        return
    on_gpu = distributed.get_backend() == 'nccl' and not tensor.is_cuda
    shared = tensor.to(torch.device('cuda', torch.cuda.current_device())) if on_gpu else tensor
    distributed.all_reduce(shared)
    shared /= count_ranks()
    if shared is not tensor:
        tensor.copy_(shared)


def check_ranks(state: Mapping[str, Any]) -> None:
    """Check that all ranks have the same state, bit by bit; every rank has to call this.

    Raises:
        RanksDiffer: They differ; names the entries, on every rank.
    """
    if count_ranks() == 1:
        return
    own = {name: fingerprint(value) for name, value in state.items()}
    found: list[dict[str, str]] = [{}] * count_ranks()
    distributed.all_gather_object(found, own)
    differing = [name for name in own if any(other.get(name) != own[name] for other in found)]
    others = [rank for rank, other in enumerate(found) if other != found[0]]
    if others:
        raise RanksDiffer(
            f'ranks {others} differ from rank 0 in {", ".join(differing) or "what others have"}: they have drifted '
            'apart, so their gates would no longer be those of one model. Give all ranks the same config, seed, '
            "software and checkpoint; a hook or a criterion that uses a rank's own data must average it over ranks"
        )


def fingerprint(value: Any) -> str:
    """A digest of tensors and plain values, nested in mappings and sequences."""
    if isinstance(value, Tensor):
        raw = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        return hashlib.sha256(raw.numpy().tobytes()).hexdigest()
    if isinstance(value, Mapping):
        value = {name: fingerprint(item) for name, item in value.items()}
    elif isinstance(value, (list, tuple)):
        value = [fingerprint(item) for item in value]
    return hashlib.sha256(repr(value).encode()).hexdigest()
