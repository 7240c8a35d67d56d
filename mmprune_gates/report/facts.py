"""The text of a report: key figures, provenance, commands."""

from __future__ import annotations

import pprint
import shlex
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from mmprune_gates.engine.model_config import stock_model
from mmprune_gates.report.run import Data, Run, scalar_files
from mmprune_gates.version import __version__

COUNTED = {'macs': 'MACs', 'params': 'parameters', 'channels': 'channels'}  # key of slim.json -> its usual name
PARTS = ('backbone', 'decode_head', 'head')  # of a model, by which it is usually named


@dataclass(frozen=True)
class Tile:
    """A key figure."""

    name: str
    value: str
    note: str


def tiles_of(run: Run) -> list[Tile]:
    """The key figures, as far as they are known."""
    tiles = slim_tiles(run, run.slim) if run.slim else gated_tiles(run)
    points = run.measured()
    if points and run.metric:
        _, value = points[-1]
        tiles.append(Tile(run.metric, f'{value:.2f}', 'last validation of the gated run'))
    progress = run.progress()
    if progress:
        done, total, unit = progress
        tiles.append(Tile('trained', f'{done:,}', f'of {total:,} {unit}'))
    return tiles


def slim_tiles(run: Run, slim: Data) -> list[Tile]:
    """MACs, parameters, channels and latency of the slim model next to those of the dense one, as far as known."""
    tiles = []
    for key, name in COUNTED.items():
        row = slim.get(key)
        if not row or not row['before']:
            continue
        before, after = row['before'], row['after']
        note = f'{quantity(before)} → {quantity(after)}'
        if key == 'macs' and run.target:
            note += f'; target {run.target:.1%}'
        tiles.append(Tile(f'{name} kept', f'{after / before:.1%}', note))
    latency = slim.get('latency') or {}
    if measured := latency.get('measured_ms'):
        note = f'{measured["before"]:.2f} → {measured["after"]:.2f} ms; target {latency["target"]:.1%}'
        tiles.append(Tile('latency kept', f'{measured["kept"]:.1%}', note))
    return tiles


def gated_tiles(run: Run) -> list[Tile]:
    """MACs and channels of the gated model, as last recorded."""
    tiles = []
    logged = run.with_macs()
    if logged:
        share = logged[-1]['macs_ratio']
        note = f'target {run.target:.1%}' if run.target else 'by gate values'
        tiles.append(Tile('MACs kept', f'{share:.1%}', note))
    if run.history:
        last = run.history[-1]
        closed = last['closed']
        total = closed + sum(last['histogram'])
        share = 1 - closed / total
        tiles.append(Tile('gates open', f'{share:.1%}', f'{total - closed} of {total}'))
    return tiles


def quantity(value: float) -> str:
    """A number with three digits and a unit, 43.1 M; below a million with all its digits."""
    if value >= 1e9:
        return f'{value / 1e9:.3g} G'
    if value >= 1e6:
        return f'{value / 1e6:.3g} M'
    return f'{value:,.0f}'


def title_of(run: Run) -> tuple[str, str]:
    """Title of a report and the line below it."""
    name = run.config_path.stem if run.config_path else run.folder.resolve().name
    if run.config is None or 'architecture' not in run.config.model:
        return f'Run: {name}', f'work directory {run.folder}'
    method = run.hook.get('type', 'no pruning hook')
    stock = stock_model(run.config.model)
    kinds = []
    for key in PARTS:
        part = stock.get(key)
        if isinstance(part, dict):
            kinds.append(without_scope(part['type']))
    model = ', '.join(kinds)
    return f'Pruning run: {name}', f'{without_scope(method)} on {stock["type"]} ({model}); {run.folder}'


def without_scope(kind: object) -> str:
    """A ``type`` of a config without the registry or module that it names."""
    return str(kind).rpartition('.')[2]


def facts_of(run: Run) -> dict[str, object]:
    """Provenance of the page and the models."""
    facts: dict[str, object] = {'work directory': run.folder}
    if run.config is not None:
        randomness = run.config.get('randomness') or {}
        facts['config'] = run.config_path
        facts['started from'] = run.start or 'no checkpoint (load_from is not set)'
        facts['seed'] = randomness.get('seed', 'not set')
    if run.hook:
        facts['pruning hook'] = pprint.pformat(run.hook, compact=True, width=110)
    starts = [path.parents[1].name for path in scalar_files(run.folder)]
    if starts:
        facts['starts'] = ', '.join(starts)
    if run.checkpoint:
        facts['last checkpoint'] = run.checkpoint
    if run.slim:
        facts |= facts_of_slim(run, run.slim)
    facts['page written by'] = f'mmprune_gates {__version__}'
    return facts


def facts_of_slim(run: Run, slim: Data) -> dict[str, object]:
    """Provenance of a slim model."""
    made = slim['provenance']
    macs = slim['macs']
    params = slim['params']
    shape = tuple(macs['input_shape'])
    error = slim['parity_error']
    return {
        'slim model': run.slim_dir,
        'made from': '{checkpoint}, SHA-256 {checkpoint_sha256}'.format_map(made),
        'made with': 'mmprune_gates {mmprune_gates}, torch {torch}, config {config}'.format_map(made),
        'MACs': f'{change(macs)} at input {shape}, batch 1',
        'parameters': change(params),
        'slim minus gated': f'{error:.1e} relative (float64)',
    }


def change(row: dict[str, int]) -> str:
    """A number before and after."""
    return '{before:,} → {after:,}'.format_map(row)


def commands_of(run: Run) -> str:
    """Commands that repeat training, slimming and testing."""
    config = run.config_path
    slim = run.slim_dir
    if config is None:
        return '# not known: the work directory holds no config'
    written = run.config or Config()
    launcher = written.get('launcher', 'none')
    options = [] if launcher == 'none' else ['--launcher', launcher]
    if written.get('resume') or run.start != written.get('load_from'):  # it was resumed, or tested, since
        options += ['--cfg-options', 'resume=False', f'load_from={run.start}']
    train = command('train.py', config, '--work-dir', run.folder, *options)
    checkpoint = checkpoint_of(run)
    if checkpoint is None:
        return f'{train}\n# no checkpoint yet: nothing to slim or test'
    to_slim = command('slim.py', config, checkpoint, slim)
    test = command('test.py', slim / 'slim.py', slim / 'slim.pth')
    return f'{train}\n{to_slim}\n{test}'


def checkpoint_of(run: Run) -> Path | None:
    """The checkpoint that the slim model was made from or, if there is none, can be made from."""
    if run.slim:
        return run.folder / run.slim['provenance']['checkpoint']
    return run.checkpoint


def command(tool: str, *arguments: object) -> str:
    """A shell command."""
    words = [str(argument) for argument in arguments]
    return f'python tools/{tool} {shlex.join(words)}'
