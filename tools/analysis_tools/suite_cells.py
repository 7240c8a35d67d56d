"""Common parts of the pages of measurements: cells that are measured once, and the page made from them."""

from __future__ import annotations

import gc
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmprune_gates import cli  # cures come before the imports below

# isort: split
import torch
from latency import seconds
from matplotlib.figure import Figure
from quality_provenance import commit, machine, versions

from mmprune_gates.report.pictures import png_of
from mmprune_gates.timing.clock import Call, Clock

PACKAGES = ('torch', 'onnxruntime', 'torch-pruning', 'mmengine', 'mmcv-lite', 'mmsegmentation', 'mmpretrain')
QUICK, FULL, GPU = 'quick', 'full', 'gpu'
SEED = 0  # of weights, images, and what is pruned
Found = Sequence[Mapping[str, Any]]  # contents of the files of cells
Table = tuple[Sequence[str], Sequence[Sequence[str]]]  # head and rows


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        name: Name of its file.
        measure: Called with the settings; returns figures that JSON can hold.
        settings: Written to the file as well.
    """

    name: str
    measure: Callable[..., Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Page:
    """A page of measurements.

    Attributes:
        name: Its name.
        sizes: Size -> all its cells.
        tables: Makes title -> table from the results.
        picture: Makes the picture from the results.
        notes: Text below the tables.
    """

    name: str
    sizes: Mapping[str, Callable[[], list[Cell]]]
    tables: Callable[[Found], dict[str, Table]]
    picture: Callable[[Found], Figure]
    notes: str

    def cells(self, size: str) -> list[Cell]:
        """The cells of a size.

        Raises:
            ValueError: The page has no such size.
        """
        if size not in self.sizes:
            raise ValueError(f'--{size}: the page {self.name!r} has no such cells, leave it out')
        return self.sizes[size]()


def carry_out(cell: Cell, folder: Path) -> None:
    """Measure a cell, unless its file exists."""
    path = folder / f'{cell.name}.json'
    if not path.is_file():
        begin = time.process_time()
        torch.manual_seed(SEED)
        figures = cell.measure(**cell.settings)
        made = {'minutes': (time.process_time() - begin) / 60, 'commit': commit(), 'machine': place(cell.settings)}
        folder.mkdir(parents=True, exist_ok=True)
        cli.write_json(path, {'cell': cell.name, **cell.settings, **figures, **made, 'versions': versions(PACKAGES)})
        print(f'{path}: {made["minutes"]:.1f} minutes', flush=True)


def place(settings: Mapping[str, Any]) -> str:
    """The machine on which figures were measured."""
    if settings.get('device', 'cpu') != 'cpu':
        return torch.cuda.get_device_name()
    return f'{machine()}, threads: {torch.get_num_threads()}'


def write_page(page: Page, name: str, cells: Sequence[Cell], folder: Path, out: Path) -> None:
    """Write JSON, Markdown and picture.

    Args:
        page: The page.
        name: Name of its files.
        cells: All cells that it should have.
        folder: Folder of the cells' files.
        out: Folder to write to.

    Raises:
        ValueError: None of the cells' files is there.
    """
    files = [folder / f'{cell.name}.json' for cell in cells]
    found = [cli.read_json(file) for file in files if file.is_file()]
    if not found:
        raise ValueError(f'no cell of the page {name!r} is in {folder}: leave --so-far out')
    made = {**provenance(found), 'missing': [file.stem for file in files if not file.is_file()]}
    cli.write_json(out / f'{name}.json', {'provenance': made, 'cells': found})
    parts = [f'## {title}\n\n{markdown(*table)}' for title, table in page.tables(found).items()]
    source = f'{made["machine"]}; {made["versions"]}; commit {made["commit"]}; seed {made["seed"]}'
    time_taken = f'{len(found)} of {len(cells)} cells, {made["minutes"]} minutes of processor time'
    parts += [page.notes, f'{source}; {time_taken}. Command: `{made["command"]}`', f'![{page.name}]({name}.png)']
    cli.write_text(out / f'{name}.md', '\n\n'.join(parts) + '\n')
    cli.write_bytes(out / f'{name}.png', png_of(page.picture(found), 110))
    print(f'{out / name}.json, .md and .png written: {len(found)} of {len(cells)} cells')


def provenance(found: Found) -> dict[str, Any]:
    """Provenance of the figures; values that differ between cells are listed side by side."""
    installed = [f'{package} {version}' for cell in found for package, version in cell['versions'].items() if version]
    return {
        'machine': listed(cell['machine'] for cell in found),
        'versions': listed(installed),
        'commit': listed(cell['commit'] or 'unknown' for cell in found),
        'seed': SEED,
        'minutes': round(sum(cell['minutes'] for cell in found), 1),
        'command': shlex.join(['python', *sys.argv]),
    }


def listed(values: Iterable[str]) -> str:
    """Each value once, in their order."""
    return ', '.join(dict.fromkeys(values))


def in_turn(calls: Sequence[Call], now: Clock, rounds: int, collect: bool = False) -> list[list[float]]:
    """Seconds of each of several calls, made in turn.

    Args:
        calls: The calls.
        now: The clock.
        rounds: How often each is made.
        collect: Whether garbage is collected before each, so that none pays for what another leaves; that also empties
            the processor's caches.
    """
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, own in zip(calls, times, strict=True):
            if collect:
                gc.collect()
            own.append(seconds(call, 1, now))
    return times


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def with_quartiles(ratio: Mapping[str, Any], digits: int = 3) -> str:
    """A ratio's median and quartiles in words."""
    low, high = ratio['quartiles']
    return f'{ratio["median"]:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})'


def error_bars(ratios: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[list[float]]]:
    """Medians of ratios, and how far their quartiles lie below and above."""
    medians = [ratio['median'] for ratio in ratios]
    below = [ratio['median'] - ratio['quartiles'][0] for ratio in ratios]
    above = [ratio['quartiles'][1] - ratio['median'] for ratio in ratios]
    return medians, [below, above]
