"""The product of slimming: a config that inherits nothing, a plain state dict, and a report."""

from __future__ import annotations

import copy
import io
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from mmprune_gates.channels.calls import tensors_in
from mmprune_gates.checks import listed
from mmprune_gates.engine.checkpoint import STATE, load_weights, read_checkpoint
from mmprune_gates.engine.forwards import example_images, training_forward
from mmprune_gates.engine.model_config import (
    GATE_KEYS,
    GATED,
    RUN_KEYS,
    SLIM,
    default_input_shape,
    model_config_of,
    with_our_import,
    without_our_hooks,
)
from mmprune_gates.engine.product import prepare_folder, write_product
from mmprune_gates.engine.registry import MODELS
from mmprune_gates.engine.slim_report import make_report, provenance
from mmprune_gates.gates import GateSet, fold_gates, gates_of
from mmprune_gates.gates.attach import merged
from mmprune_gates.pruning.pruner import count_parameters
from mmprune_gates.slimming import slim_model
from mmprune_gates.slimming.parity import exact_outputs, relative_error, tolerance
from mmprune_gates.version import __version__

Report = dict[str, Any]


def export_slim(config: Config, checkpoint_path: str | Path, out_dir: str | Path) -> dict[str, Any]:
    """Fold and slim a gated checkpoint, check it, and write ``slim.py``, ``slim.pth`` and ``slim.json``.

    Args:
        config: Config of the gated run.
        checkpoint_path: A checkpoint of it.
        out_dir: Folder to write; an earlier product in it is replaced, anything else is refused.

    Returns:
        The report, as in ``slim.json``.

    Raises:
        ValueError: The config has no gates, the checkpoint does not fit, or the output differs by more than 1e-5
            relative; nothing is written then.
        OSError: ``out_dir`` holds something else, or cannot be written.
    """
    if config.model.get('type') != GATED:
        raise ValueError(
            f'{config.filename}: model.type is {config.model.get("type")!r}, not {GATED!r}; slimming needs '
            'the config of a gated run'
        )
    out_dir = Path(out_dir)
    prepare_folder(out_dir)
    checkpoint = read_checkpoint(checkpoint_path)
    model, model_config, report = slim(config, checkpoint, checkpoint_path)
    contents = {
        'slim.py': slim_config(config, model_config).pretty_text.encode(),
        'slim.pth': saved(model, report, checkpoint.get('meta')),
        'slim.json': json.dumps(report, indent=1).encode(),
    }
    write_product(out_dir, contents)
    return report


def saved(model: nn.Module, report: Mapping[str, Any], meta: Any) -> bytes:
    """The contents of ``slim.pth``.

    Args:
        model: The slim model.
        report: As in ``slim.json``.
        meta: Metadata of the gated checkpoint; classes and palette of its data set are taken over.
    """
    own = {'mmprune_gates_version': __version__, 'slim': {key: report[key] for key in ('macs', 'params')}}
    dataset_meta = meta.get('dataset_meta') if isinstance(meta, Mapping) else None
    if dataset_meta:
        own['dataset_meta'] = dataset_meta
    file = io.BytesIO()
    torch.save({'state_dict': model.state_dict(), 'meta': own}, file)
    return file.getvalue()


def slim(config: Config, checkpoint: dict[str, Any], path: str | Path) -> tuple[nn.Module, dict[str, Any], Report]:
    """Build, load, fold and slim a gated model, rebuild it from its config, and compare.

    Returns:
        The slim model, its model config, and the report.

    Raises:
        ValueError: The checkpoint does not fit, or the rebuilt model's output differs.
    """
    init_default_scope(config.get('default_scope', 'mmengine'))
    stock = model_config_of(config)
    gated = MODELS.build(copy.deepcopy(stock)).eval()
    before = count_parameters(gated)
    load_weights(gated, checkpoint, path)
    doubts = doubts_about(gates_of(gated), checkpoint)
    for doubt in doubts:
        print_log(f'{path}: {doubt}', 'current', logging.WARNING)
    example = example_images(stock)
    expected, exact = outputs(gated, example), exact_outputs(gated, training_forward, ((example,), {}))
    slimmed = copy.deepcopy(gated)
    gates = gates_of(slimmed)
    spec = merged(gates.spec, slim_model(slimmed, *fold_gates(slimmed)))
    graph, kept = gates.whole, gates.kept_of_whole(gates.graph.without_inner(gates.kept()))
    own = {key: value for key, value in stock.items() if key not in ('type', *GATE_KEYS)}
    model_config = {'type': SLIM, **own, **spec}
    rebuilt = MODELS.build(copy.deepcopy(model_config)).eval()
    load_weights(rebuilt, {'state_dict': slimmed.state_dict()}, 'slim.pth')
    parity = relative_error(exact, exact_outputs(rebuilt, training_forward, ((example,), {})))
    refuse_unlike(exact, parity, path)
    report = {
        **make_report(graph, kept, (before, count_parameters(rebuilt)), default_input_shape(model_config)),
        'parity_error': parity,
        'parity_error_fp32': relative_error(expected, outputs(rebuilt, example)),
        'warnings': doubts,
        'provenance': provenance(config, Path(path)),
    }
    return rebuilt, model_config, report


def refuse_unlike(outputs: list[Tensor], parity: float, path: str | Path) -> None:
    """Refuse a slim model whose outputs are not those of the gated one.

    Args:
        outputs: Outputs of the gated model.
        parity: Relative error of the slim model's outputs.
        path: Path of the checkpoint, for the message.

    Raises:
        ValueError: The outputs differ, or are not finite.
    """
    if not all(bool(tensor.isfinite().all()) for tensor in outputs):
        raise ValueError(
            f'the outputs of the gated model of {path} are not finite (NaN or infinite), so nothing can be compared '
            'and nothing was written. The run had diverged: take an earlier checkpoint'
        )
    most = tolerance(outputs)
    if not parity <= most:
        raise ValueError(
            f'the slim model differs from the gated one by {parity:.2e} (relative, at most {most:.0e}); nothing '
            'was written. The model probably fixes a channel count in its code; run tools/channels.py to see its '
            'groups, and exclude the module with the hook argument `exclude`'
        )


def is_state(state: Any, num_channels: int) -> bool:
    """Whether a value is the state of a pruning hook for gates over ``num_channels`` channels."""
    if not isinstance(state, Mapping) or not {'settled', 'kept'} <= state.keys():
        return False
    kept = state['kept']
    return kept is None or (isinstance(kept, Tensor) and kept.shape == (num_channels,) and kept.dtype == torch.bool)


def doubts_about(gates: GateSet, checkpoint: Mapping[str, Any]) -> list[str]:
    """Warnings about a checkpoint before it is slimmed; empty if it comes from a settled run.

    Args:
        gates: The gates, with the checkpoint's weights.
        checkpoint: The checkpoint; its state of the run is examined too, if it has one.
    """
    found, state = [], checkpoint.get(STATE)
    kept = gates.kept()
    if not gates.shrunk and all(bool(own.all()) for own in kept.values()):
        found.append('no gate is closed: nothing will be removed')
    if state is None:
        found.append('it was not saved by a run with a pruning hook, so nothing tells whether its gates have settled')
    elif not is_state(state, gates.graph.num_channels):
        found.append(f'its state of the run ({STATE!r}) is not one that a pruning hook has saved')
    elif not state['settled']:
        found.append('its gates have not settled: the run had not reached its end (settle), or its target')
    elif state['kept'] is not None:
        chosen = gates.graph.keeping(state['kept'])
        if still := [name for name, own in kept.items() if bool((own & ~chosen[name]).any())]:
            found.append(
                f'the run has closed channels of {listed(still)} that are not closed in these weights: they are '
                'averaged (EMAHook), and averages never reach exactly 0; slim weights that were trained'
            )
    return found


@torch.no_grad()
def outputs(model: nn.Module, example: Tensor) -> list[Tensor]:
    """Outputs of every head, flattened."""
    return tensors_in(training_forward(model, example))


def slim_config(config: Config, model: dict[str, Any]) -> Config:
    """The training config with the slim model, without pruning hooks, starting from ``slim.pth`` beside it."""
    result = {key: value for key, value in config.to_dict().items() if key not in RUN_KEYS}
    result['model'] = model
    result['custom_hooks'] = without_our_hooks(result.get('custom_hooks'))
    result['custom_imports'] = with_our_import(result.get('custom_imports'))
    result['load_from'] = '{{ fileDirname }}/slim.pth'
    return Config(result)
