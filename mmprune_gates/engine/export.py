"""The product of slimming: a config that inherits nothing, a plain state dict, and a report."""

from __future__ import annotations

import copy
import io
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from mmprune_gates.channels import ChannelGraph
from mmprune_gates.channels.calls import tensors_in
from mmprune_gates.channels.kept import Kept
from mmprune_gates.checks import listed
from mmprune_gates.engine.checkpoint import STATE, load_weights, read_checkpoint
from mmprune_gates.engine.files import digest
from mmprune_gates.engine.forwards import example_images, training_forward
from mmprune_gates.engine.model_config import (
    GATE_KEYS,
    GATED,
    RUN_KEYS,
    SLIM,
    default_input_shape,
    with_our_import,
    without_our_hooks,
    without_pretrained,
)
from mmprune_gates.engine.product import prepare_folder, write_product
from mmprune_gates.engine.registry import MODELS
from mmprune_gates.gates import GateSet, fold_gates, gates_of
from mmprune_gates.gates.attach import merged
from mmprune_gates.pruning.pruner import count_parameters
from mmprune_gates.slimming import slim_model
from mmprune_gates.slimming.parity import exact_outputs, relative_error, tolerance
from mmprune_gates.version import __version__


@dataclass(frozen=True)
class Slimmed:
    """A slim model and what it was made from.

    Attributes:
        model: The slim model, rebuilt from ``config``.
        config: Its model config.
        graph: Channel graph of the gated model, before any channel left it.
        kept: The channels kept.
        params: Parameters before and after.
        parity: Largest absolute difference of all heads' outputs, relative to the largest output, in float64.
        parity_fp32: The same in float32, where rounding adds to it.
        doubts: Warnings about the checkpoint, for the user.
    """

    model: nn.Module
    config: dict[str, Any]
    graph: ChannelGraph
    kept: Kept
    params: tuple[int, int]
    parity: float
    parity_fp32: float
    doubts: list[str]


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
    slimmed = slim(config, checkpoint, checkpoint_path)
    report = make_report(slimmed, config, checkpoint_path)
    contents = {
        'slim.py': slim_config(config, slimmed.config).pretty_text.encode(),
        'slim.pth': saved(slimmed.model, report, checkpoint.get('meta')),
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


def slim(config: Config, checkpoint: dict[str, Any], path: str | Path) -> Slimmed:
    """Build, load, fold and slim a gated model, rebuild it from its config, and compare.

    Raises:
        ValueError: The checkpoint does not fit, or the rebuilt model's output differs.
    """
    init_default_scope(config.get('default_scope', 'mmengine'))
    gated = MODELS.build(without_pretrained(config.model.to_dict())).eval()
    before = count_parameters(gated)
    load_weights(gated, checkpoint, path)
    doubts = doubts_about(gates_of(gated), checkpoint)
    for doubt in doubts:
        print_log(f'{path}: {doubt}', 'current', logging.WARNING)
    own = {key: value for key, value in config.model.to_dict().items() if key not in ('type', *GATE_KEYS)}
    example = example_images(own)
    expected, exact = outputs(gated, example), exact_outputs(gated, training_forward, ((example,), {}))
    slimmed = copy.deepcopy(gated)
    gates = gates_of(slimmed)
    spec = slim_model(slimmed, *fold_gates(slimmed))
    graph, kept = gates.whole, gates.kept_of_whole(gates.graph.without_inner(gates.kept()))
    model_config = {'type': SLIM, **without_pretrained(own), **merged(gates.spec, spec)}
    rebuilt = MODELS.build(copy.deepcopy(model_config)).eval()
    load_weights(rebuilt, {'state_dict': slimmed.state_dict()}, 'slim.pth')
    parity = relative_error(exact, exact_outputs(rebuilt, training_forward, ((example,), {})))
    refuse_unlike(exact, parity, path)
    return Slimmed(
        rebuilt,
        model_config,
        graph,
        kept,
        (before, count_parameters(rebuilt)),
        parity,
        relative_error(expected, outputs(rebuilt, example)),
        doubts,
    )


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


def make_report(slimmed: Slimmed, config: Config, checkpoint_path: str | Path) -> dict[str, Any]:
    """The report of a slimming, as plain values."""
    graph, kept = slimmed.graph, slimmed.kept
    macs = graph.macs(), graph.macs(kept)
    channels = {group.name: kept[group.name] for group in graph.free_channels}
    indices = kept.indices()
    return {
        'macs': {
            'before': macs[0],
            'after': macs[1],
            'removed': 1 - macs[1] / macs[0],
            'input_shape': list(default_input_shape(slimmed.config)),
        },
        'params': {'before': slimmed.params[0], 'after': slimmed.params[1]},
        'parity_error': slimmed.parity,
        'parity_error_fp32': slimmed.parity_fp32,
        'channels': {
            'before': sum(len(mask) for mask in channels.values()),
            'after': sum(int(mask.sum()) for mask in channels.values()),
        },
        'blocks': blocks_report(graph, kept),
        'groups': {name: {'size': len(mask), 'kept': indices[name]} for name, mask in channels.items()},
        'frozen': {group.name: group.frozen for group in graph.groups if group.frozen is not None},
        'warnings': slimmed.doubts,
        'provenance': provenance(config, Path(checkpoint_path)),
    }


def blocks_report(graph: ChannelGraph, kept: Kept) -> dict[str, Any]:
    """Residual blocks that can go: how many before and after, which have gone, and which of those left a constant."""
    can_go = [block.name for block in graph.blocks if block.gate is not None or block.last is not None]
    closed = [block.name for block in kept.closed]
    constant = [block.name for block in kept.emptied if block.name not in closed]
    gone = [name for name in can_go if name in closed or name in constant]
    return {'before': len(can_go), 'after': len(can_go) - len(gone), 'removed': gone, 'constant': constant}


def kept_in(graph: ChannelGraph, report: Mapping[str, Any]) -> Kept:
    """The channels that a product has kept, read back from its report.

    Args:
        graph: The graph of the whole model, its blocks gated.
        report: The contents of ``slim.json``.

    Raises:
        ValueError: The report is of another model.
    """
    free = {group.name: group for group in graph.free}
    vector = graph.kept().vector.clone()
    for name, entry in report['groups'].items():
        group, size = free.get(name), entry['size']
        if group is None or group.size != size:
            raise ValueError(f'slim.json is of another model: it has a group {name!r} of {size} channels')
        mask = torch.zeros(size, dtype=torch.bool)
        mask[entry['kept']] = True
        vector[group.span] = mask
    blocks = report['blocks']
    for block in graph.gated_blocks:
        if block.name in blocks['removed'] and block.name not in blocks['constant']:
            vector[block.gate] = False
    return graph.without_inner(graph.keeping(vector))


def provenance(config: Config, checkpoint: Path) -> dict[str, str]:
    """Config, checkpoint and versions that a product was made from."""
    return {
        'config': Path(config.filename or '').name,
        'checkpoint': checkpoint.name,
        'checkpoint_sha256': digest(checkpoint),
        'mmprune_gates': __version__,
        'torch': torch.__version__,
    }
