"""What a report says in words: figures at a glance, provenance, commands."""

from __future__ import annotations

import pprint
import shlex
from dataclasses import dataclass

from mmprune_gates.engine.model_config import stock_model
from mmprune_gates.report.run import Run
from mmprune_gates.version import __version__


@dataclass(frozen=True)
class Tile:
    """A figure at a glance."""

    name: str
    value: str
    note: str


def tiles_of(run: Run) -> list[Tile]:
    """The figures that matter, as far as they are known."""
    tiles = slim_tiles(run) if run.slim else gated_tiles(run)
    if points := run.measured():
        tiles.append(Tile(run.metric, f'{points[-1][1]:.2f}', 'last validation of the gated run'))
    if progress := run.progress():
        done, total, unit = progress
        tiles.append(Tile('trained', f'{done:,}', f'of {total:,} {unit}'))
    return tiles


def slim_tiles(run: Run) -> list[Tile]:
    """MACs, parameters and channels of the slim model, beside the dense one's."""
    named = {'MACs': 'macs', 'parameters': 'params', 'channels': 'channels'}
    tiles = []
    for name, key in named.items():
        row = run.slim.get(key)
        if row and row['before']:
            note = f'{quantity(row["before"])} → {quantity(row["after"])}'
            note += f'; target {run.target:.1%}' if name == 'MACs' and run.target else ''
            tiles.append(Tile(f'{name} kept', f'{row["after"] / row["before"]:.1%}', note))
    return tiles


def gated_tiles(run: Run) -> list[Tile]:
    """MACs and channels of the gated model, from the last that was recorded."""
    tiles = []
    ratios = [line['macs_ratio'] for line in run.train if 'macs_ratio' in line]
    if ratios:
        target = f'target {run.target:.1%}' if run.target else 'by gate values'
        tiles.append(Tile('MACs kept', f'{ratios[-1]:.1%}', target))
    if run.history:
        last = run.history[-1]
        total = last['closed'] + sum(last['histogram'])
        tiles.append(Tile('gates open', f'{1 - last["closed"] / total:.1%}', f'{total - last["closed"]} of {total}'))
    return tiles


def quantity(value: float) -> str:
    """A number with three digits and a unit, 43.1 M; below a million all its digits."""
    for size, unit in ((1e9, 'G'), (1e6, 'M')):
        if value >= size:
            return f'{value / size:.3g} {unit}'
    return f'{value:,.0f}'


def title_of(run: Run) -> tuple[str, str]:
    """Title of a report and the line below it."""
    method = str(run.hook.get('type', '')).rpartition('.')[2]
    name = run.config_path.stem if run.config_path else run.folder.resolve().name
    if run.config is None or 'architecture' not in run.config.model:
        return f'Run: {name}', f'work directory {run.folder}'
    stock = stock_model(run.config.model)
    parts = [stock[part]['type'] for part in ('backbone', 'decode_head', 'head') if isinstance(stock.get(part), dict)]
    model = ', '.join(str(part).rpartition('.')[2] for part in parts)
    return f'Pruning run: {name}', f'{method or "no pruning hook"} on {stock["type"]} ({model}); {run.folder}'


def facts_of(run: Run) -> dict[str, str]:
    """Where the page and the models come from."""
    facts = {'work directory': str(run.folder)}
    if run.config is not None:
        facts['config'] = str(run.config_path)
        facts['started from'] = str(run.config.get('load_from') or 'no checkpoint (load_from is not set)')
        facts['seed'] = str((run.config.get('randomness') or {}).get('seed', 'not set'))
    if run.hook:
        facts['pruning hook'] = pprint.pformat(run.hook, compact=True, width=110)
    starts = sorted(path.parents[1].name for path in run.folder.glob('*/vis_data/scalars.json'))
    if starts:
        facts['starts'] = ', '.join(starts)
    if run.checkpoint:
        facts['last checkpoint'] = str(run.checkpoint)
    if run.slim:
        facts |= facts_of_slim(run)
    facts['page written by'] = f'mmprune_gates {__version__}'
    return facts


def facts_of_slim(run: Run) -> dict[str, str]:
    """Where a slim model comes from."""
    made, macs = run.slim['provenance'], run.slim['macs']
    return {
        'slim model': str(run.slim_dir),
        'made from': f'{made["checkpoint"]}, SHA-256 {made["checkpoint_sha256"]}',
        'made with': f'mmprune_gates {made["mmprune_gates"]}, torch {made["torch"]}, config {made["config"]}',
        'MACs': f'{macs["before"]:,} → {macs["after"]:,} at input {tuple(macs["input_shape"])}, batch 1',
        'parameters': f'{run.slim["params"]["before"]:,} → {run.slim["params"]["after"]:,}',
        'slim minus gated': f'{run.slim["parity_error"]:.1e} relative (float64)',
    }


def commands_of(run: Run) -> str:
    """Commands that train, slim and test again."""
    if run.config_path is None:
        return '# not known: the work directory holds no config'
    config, slim = run.config_path, run.slim_dir
    launcher = (run.config or {}).get('launcher', 'none')
    train = ['tools/train.py', config, '--work-dir', run.folder]
    train += [] if launcher == 'none' else ['--launcher', launcher]
    name = run.slim['provenance']['checkpoint'] if run.slim else run.checkpoint and run.checkpoint.name
    if name is None:
        return '\n'.join([command(train), '# no checkpoint yet: nothing to slim or test'])
    lines = [train, ['tools/slim.py', config, run.folder / name, slim]]
    lines.append(['tools/test.py', slim / 'slim.py', slim / 'slim.pth'])
    return '\n'.join(map(command, lines))


def command(words: list) -> str:
    """A line for a shell."""
    return 'python ' + shlex.join(map(str, words))
