"""The page: every section that can be made, and one line for each that cannot."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from jinja2 import Environment

from mmprune_gates.cli.files import write_bytes, write_text
from mmprune_gates.engine.gate_picture import Line, histograms
from mmprune_gates.report import pictures
from mmprune_gates.report.facts import commands_of, facts_of, tiles_of, title_of
from mmprune_gates.report.network import Network, network_of
from mmprune_gates.report.pictures import Drawn, png_of
from mmprune_gates.report.predictions import predictions_of
from mmprune_gates.report.run import TO_RECORD, Absent, Run

DPI = 110
TEMPLATE = Path(__file__).with_name('page.html')
NO_HISTORY = f'no gates.jsonl: {TO_RECORD}'


@dataclass(frozen=True)
class Section:
    """A section of the page; ``picture`` is a PNG in base64, or empty."""

    key: str
    title: str
    drawn: Drawn
    picture: str


class Sections:
    """Makes the sections of one run; each method raises :class:`Absent` if something it needs is missing.

    Args:
        run: The run.
        images: Number of images to show for a segmentor.
        samples: Largest number of images to classify.
    """

    def __init__(self, run: Run, images: int, samples: int) -> None:
        self.run = run
        self.images = images
        self.samples = samples

    @cached_property
    def found(self) -> Network | Absent:
        """The model before and after, or the reason why it is missing; traced once."""
        try:
            return network_of(self.run)
        except Absent as reason:
            return reason

    def network(self) -> Network:
        """The model before and after."""
        if isinstance(self.found, Absent):
            raise self.found
        return self.found

    def gates(self) -> Drawn:
        """Gates over time."""
        if not self.run.history:
            raise Absent(NO_HISTORY)
        note = 'Every column is a histogram of all gates at one time; white: none.'
        return Drawn(note, pictures.gates_over_time(self.run.history))

    def histograms(self) -> Drawn:
        """Gates at the start, in the middle and at the end of the record."""
        history = self.run.history
        if not history:
            raise Absent(NO_HISTORY)
        last = len(history) - 1
        middle = half_closed(history)
        if middle in (0, last):
            middle = len(history) // 2
        chosen = [history[place] for place in sorted({0, middle, last})]
        note = (
            'The first record, the one with half of the gates closed that are closed at the end, and the last; the '
            'number of gates has a logarithmic scale.'
        )
        return Drawn(note, histograms(chosen))

    def macs(self) -> Drawn:
        """MACs over time against the target."""
        run = self.run
        lines = run.with_macs()
        if not lines:
            raise Absent('no macs_ratio in TIMESTAMP/vis_data/scalars.json: no pruning hook logged there')
        slim = None
        if run.slim:
            macs = run.slim['macs']
            slim = macs['after'] / macs['before']
        return Drawn('', pictures.macs_over_time(lines, run.target, slim))

    def losses(self) -> Drawn:
        """Loss and validation metric."""
        run = self.run
        if not run.train:
            raise Absent('no losses: TIMESTAMP/vis_data/scalars.json is missing or empty')
        points = run.measured()
        note = ''
        if not points:
            note = 'The run has no validation on record, so there is no metric to show.'
        elif len(points) == 1:
            place, value = points[0]
            note = f'One validation, at iteration {place}: {run.metric} {value:.2f}.'
        return Drawn(note, pictures.losses(run.train, run.metric or '', points))

    def layers(self) -> Drawn:
        """Channels kept per layer."""
        network = self.network()
        note = f'Convolutions and linear layers of inference, by stage; kept according to {network.source}.'
        return Drawn(note, pictures.layers(network.widths))

    def costs(self) -> Drawn:
        """MACs per stage."""
        network = self.network()
        note = f'Multiply-accumulates at batch 1, input {network.input_shape}; according to {network.source}.'
        return Drawn(note, pictures.costs(network))

    def blocks(self) -> Drawn:
        """Residual blocks that are gone."""
        network = self.network()
        number = len(network.blocks)
        if not number:
            return Drawn('This model has no residual block that could go.')
        note = f'{len(network.gone)} of the {number} residual blocks that could go are gone.'
        return Drawn(note, items=tuple(network.gone))

    def predictions(self) -> Drawn:
        """Predictions of the slim or gated model."""
        return predictions_of(self.run, self.images, self.samples)


def half_closed(history: Sequence[Line]) -> int:
    """Index of the first record with at least half as many gates closed as in the last one."""
    closed = [line['closed'] for line in history]
    half = closed[-1] / 2
    return next(place for place, count in enumerate(closed) if count >= half)


TITLES = {
    'gates': 'Gates over time',
    'histograms': 'Gates at start, middle and end',
    'macs': 'MACs against the target',
    'losses': 'Loss and validation',
    'layers': 'Channels kept per layer',
    'costs': 'MACs per stage',
    'blocks': 'Residual blocks gone',
    'predictions': 'Predictions',
}


def write_report(run: Run, out: str | Path, images: int = 4, samples: int = 1000) -> tuple[Path, dict[str, str]]:
    """Write ``index.html`` and its pictures.

    Args:
        run: The run.
        out: Folder to write to; an earlier report there is replaced.
        images: Number of images to show for a segmentor.
        samples: Largest number of images to classify.

    Returns:
        Path of the page, and title -> reason for what it leaves out.
    """
    out = Path(out)
    maker = Sections(run, images, samples)
    sections = []
    rendered = {}
    missing = {} if run.slim else {'Slim model': run.slim_error}
    for key, title in TITLES.items():
        try:
            drawn = getattr(maker, key)()
        except Absent as reason:
            missing[title] = str(reason)
            continue
        if drawn.figure is not None:
            rendered[key] = png_of(drawn.figure, DPI)
        encoded = base64.b64encode(rendered.get(key, b''))
        sections.append(Section(key, title, drawn, encoded.decode()))
    html = html_of(run, sections, missing)
    for key in TITLES:
        if key in rendered:
            write_bytes(out / f'{key}.png', rendered[key])
        else:
            (out / f'{key}.png').unlink(missing_ok=True)
    write_text(out / 'index.html', html)
    return out / 'index.html', missing


def html_of(run: Run, sections: list[Section], missing: dict[str, str]) -> str:
    """The page as HTML that needs no other file."""
    title, subtitle = title_of(run)
    template = Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding='utf-8'))
    return template.render(
        title=title,
        subtitle=subtitle,
        tiles=tiles_of(run),
        doubts=run.doubts,
        sections=sections,
        facts=facts_of(run),
        commands=commands_of(run),
        missing=missing,
    )
