"""Whether a model pruned to a latency is as fast as intended."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from mmprune_gates.budget.goal import Goal
from mmprune_gates.budget.latency import Latency
from mmprune_gates.engine.builders import inference_model
from mmprune_gates.engine.coverage import model_of_config
from mmprune_gates.engine.model_config import pruning_hook_of
from mmprune_gates.engine.registry import COSTS, built
from mmprune_gates.engine.slim_report import kept_in
from mmprune_gates.timing.clock import medians
from mmprune_gates.timing.table import backend_of


def latency_cost(config: Config) -> tuple[Latency, Goal] | None:
    """The latency that a config prunes to, and its goal; None if it prunes to another cost."""
    hook = pruning_hook_of(config)
    cost = built(COSTS, hook.get('cost'))
    return (cost, Goal.of(hook)) if isinstance(cost, Latency) else None


def verdict(config: Config, slim_dir: str | Path, report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Predicted and measured latency of the dense and the slim model, measured in turn.

    Args:
        config: Config of the pruning run.
        slim_dir: Folder of the slim model.
        report: Its ``slim.json``.

    Returns:
        Platform, target, and latencies; None if the run did not prune to a latency.
    """
    wanted = latency_cost(config)
    if wanted is None:
        return None
    cost, goal = wanted
    dense, graph, shape = model_of_config(config)
    cost.bind(graph)
    slim = inference_model(Config.fromfile(Path(slim_dir) / 'slim.py'))
    images = torch.randn(cost.settings.batch, *shape)
    backend = backend_of(cost.settings)
    calls = [backend.call(model, images) for model in (dense, slim)]
    measured = medians(calls, backend.now)
    everything, kept = graph.kept(), kept_in(graph, report)
    predicted = [float(cost.price(chosen.vector.double())) for chosen in (everything, kept)]
    return {
        **cost.settings.facts(),
        'target': goal.value / measured[0] if goal.name == 'target_ms' else goal.value,
        'predicted_ms': compared(*predicted),
        'measured_ms': compared(*measured),
    }


def compared(before: float, after: float) -> dict[str, float]:
    """Two figures, and the share that is kept."""
    return {'before': before, 'after': after, 'kept': after / before}
