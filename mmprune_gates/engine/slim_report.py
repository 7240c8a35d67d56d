"""The report of a product, ``slim.json``: what it says, and what is read back from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from mmprune_gates.channels import ChannelGraph
from mmprune_gates.channels.kept import Kept
from mmprune_gates.checks import COUNT, IMAGE, MAPPING, NOT_NEGATIVE, POSITIVE, Rule, checked, is_list, is_whole
from mmprune_gates.engine.files import digest
from mmprune_gates.version import __version__

TEXT = Rule('a text', lambda value: isinstance(value, str))
TEXTS = Rule('a list of texts', lambda value: is_list(value) and all(map(TEXT.holds, value)))
AMOUNTS = {'before': POSITIVE, 'after': NOT_NEGATIVE}
MEASURED = dict.fromkeys(('before', 'after', 'kept'), POSITIVE)
ORIGIN = ('config', 'checkpoint', 'checkpoint_sha256', 'mmprune_gates', 'torch')
PARTS = {
    'macs': {**AMOUNTS, 'input_shape': IMAGE},
    'params': AMOUNTS,
    'channels': {'before': NOT_NEGATIVE, 'after': NOT_NEGATIVE},  # none if only blocks are pruned
    'blocks': {'removed': TEXTS, 'constant': TEXTS},
    'provenance': dict.fromkeys(ORIGIN, TEXT),
}


def make_report(graph: ChannelGraph, kept: Kept, params: tuple[int, int], input_shape: Sequence[int]) -> dict[str, Any]:
    """What has been removed, as plain values.

    Args:
        graph: Channel graph of the gated model, before any channel left it.
        kept: The channels kept.
        params: Parameters before and after.
        input_shape: (C, H, W) that MACs are stated for.
    """
    macs = graph.macs(), graph.macs(kept)
    channels = {group.name: kept[group.name] for group in graph.free_channels}
    indices = kept.indices()
    return {
        'macs': {
            'before': macs[0],
            'after': macs[1],
            'removed': 1 - macs[1] / macs[0],
            'input_shape': list(input_shape),
        },
        'params': {'before': params[0], 'after': params[1]},
        'channels': {
            'before': sum(len(mask) for mask in channels.values()),
            'after': sum(int(mask.sum()) for mask in channels.values()),
        },
        'blocks': blocks_report(graph, kept),
        'groups': {name: {'size': len(mask), 'kept': indices[name]} for name, mask in channels.items()},
        'frozen': {group.name: group.frozen for group in graph.groups if group.frozen is not None},
    }


def blocks_report(graph: ChannelGraph, kept: Kept) -> dict[str, Any]:
    """Residual blocks that can go: how many before and after, which have gone, and which of those left a constant."""
    can_go = [block.name for block in graph.blocks if block.gate is not None or block.last is not None]
    closed = [block.name for block in kept.closed]
    constant = [block.name for block in kept.emptied if block.name not in closed]
    removed = {*closed, *constant}
    gone = [name for name in can_go if name in removed]
    before = len(can_go)
    after = before - len(gone)
    return {'before': before, 'after': after, 'removed': gone, 'constant': constant}


def read_report(path: Path) -> dict[str, Any]:
    """The contents of a ``slim.json``.

    Raises:
        ValueError: The file was cut or changed.
    """
    try:
        report = json.loads(path.read_text(errors='replace'))
        check_report(report, path)
    except ValueError as error:
        raise ValueError(f'{error}; the file was cut or changed: write it again with tools/slim.py') from error
    return report


def check_report(report: Any, path: str | Path) -> None:
    """Check the contents of a ``slim.json``.

    Args:
        report: The contents.
        path: The file, for the message.

    Raises:
        ValueError: A value that is read from it is missing or wrong; names the key.
    """
    checked(str(path), report, MAPPING)
    for key, rules in PARTS.items():
        check_part(f'{path}: {key}', report.get(key), rules)
    checked(f'{path}: parity_error', report.get('parity_error'), NOT_NEGATIVE)
    checked(f'{path}: warnings', report.get('warnings'), TEXTS)
    groups = checked(f'{path}: groups', report.get('groups'), MAPPING)
    for name, entry in groups.items():
        place = f'{path}: groups[{name!r}]'
        check_part(place, entry, {'size': COUNT})
        checked(f'{place}.kept', entry.get('kept'), numbers_below(entry['size']))
    latency = checked(f'{path}: latency', report.get('latency', {}), MAPPING)
    if 'measured_ms' in latency:
        check_part(f'{path}: latency.measured_ms', latency['measured_ms'], MEASURED)
        checked(f'{path}: latency.target', latency.get('target'), POSITIVE)


def check_part(place: str, part: Any, rules: Mapping[str, Rule]) -> None:
    """Check that a value is a dictionary whose entries satisfy the rules.

    Raises:
        ValueError: It is not; names the place.
    """
    checked(place, part, MAPPING)
    for name, rule in rules.items():
        checked(f'{place}.{name}', part.get(name), rule)


def numbers_below(size: int) -> Rule:
    """Rule for a list of different channels of a group of that size."""

    def holds(value: Any) -> bool:
        if not is_list(value) or not all(map(is_whole, value)):
            return False
        return len(set(value)) == len(value) and all(0 <= number < size for number in value)

    return Rule(f'a list of different whole numbers from 0 to {size - 1}', holds)


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
