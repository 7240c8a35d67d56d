"""Latency on a machine as a cost: the time of each op at its remaining widths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils._pytree import tree_map

from mmprune_gates.budget.costs import Cost
from mmprune_gates.budget.latency_table import PROCEDURE, Curve, Fit, Table, Target, digest_of
from mmprune_gates.channels.cost import Extent, Widths
from mmprune_gates.channels.graph import ChannelGraph
from mmprune_gates.channels.workload import Operand, Work

COMMAND = 'python tools/analysis_tools/latency_table.py CONFIG'
NARROWEST = 1e-2  # a channel's marginal cost counts at least as this share of the mean one


@dataclass(frozen=True)
class Kind:
    """The key and the widths by which the time of an op is looked up.

    Attributes:
        signature: The op, its constants, and the shapes of its tensors; ``*`` marks sizes that may shrink.
        reads: Channels that a layer reads; 1 for other ops.
        makes: Channels that a layer makes; for other ops, the elements of their largest tensor.
    """

    signature: str
    reads: Extent
    makes: Extent


def is_layer(work: Work) -> bool:
    """Whether an op has separate input and output widths; a depthwise convolution has only one width."""
    if not work.name.startswith(('conv', 'linear')):
        return False
    x, made = work.operands[0], work.results[0]
    read, written = (channels_of(work, operand).factors for operand in (x, made))
    return not read or read != written or work.name == 'linear'


def channel_dim(work: Work) -> int:
    """Dimension of a layer's input and output that holds its channels."""
    return len(work.operands[0].shape) - 1 if work.name == 'linear' else 1


def channels_of(work: Work, operand: Operand) -> Extent:
    """Width of the input or output of a layer."""
    dim = channel_dim(work)
    number = operand.factors.get(dim)
    return Extent(operand.shape[dim]) if number is None else Extent(1, (number,))


def elements_of(operand: Operand) -> Extent:
    """Number of elements of a tensor."""
    rigid = [size for dim, size in enumerate(operand.shape) if dim not in operand.factors]
    return Extent(prod(rigid), tuple(operand.factors.values()))


def largest_of(work: Work) -> Operand:
    """The operand or result of an op with the most elements."""
    return max([*work.operands, *work.results], key=lambda operand: prod(operand.shape))


def kind_of(work: Work) -> Kind:
    """The kind by which an op's latency is looked up."""

    def shown(leaf: Any) -> Any:
        if not isinstance(leaf, Operand):
            return leaf
        sizes = []
        for dim, size in enumerate(leaf.shape):
            mark = '*' if dim in leaf.factors else ''
            sizes.append(f'{size}{mark}')
        return 'x'.join(sizes)

    arguments = tree_map(shown, (*work.args, *work.kwargs.items()))
    signature = f'{work.target}{arguments}'
    if is_layer(work):
        return Kind(signature, channels_of(work, work.operands[0]), channels_of(work, work.results[0]))
    return Kind(signature, Extent(), elements_of(largest_of(work)))


ACTIVATIONS = frozenset('relu relu6 hardtanh clamp leaky_relu sigmoid hardsigmoid tanh'.split())
LEFT_OUT = frozenset('dropout feature_dropout alpha_dropout contiguous'.split())


def absorbed(works: Sequence[Work]) -> set[int]:
    """Positions of the ops without time of their own in onnxruntime: norms, activations, sums, and what does nothing.

    Behaviour of onnxruntime 1.31: norms after a layer are folded into its weights, activations and sums are applied as
    the layer writes its result, dropouts and the like are left out.
    """
    readers = Counter(operand.maker for work in works for operand in work.operands)
    layer_of: dict[int, int] = {}  # op -> layer that computes it
    found: set[int] = set()
    for position, work in enumerate(works):
        if work.name.startswith(('conv', 'linear')):
            layer_of[position] = position
            continue
        makers = [operand.maker for operand in work.operands if operand.maker in layer_of]
        maker = next((maker for maker in makers if readers[maker] == 1), None)  # read by this op alone
        if maker is not None:
            is_folded = work.name == 'batch_norm' and layer_of[maker] == maker
            if is_folded or work.name in {*ACTIVATIONS, *LEFT_OUT, 'add'}:
                layer_of[position] = layer_of[maker]
        if position in layer_of or work.name in LEFT_OUT:
            found.add(position)
    return found


class Curves:
    """Looks up the times of many ops, each on its own curve.

    Where a wider kernel is faster, its time counts for the narrower width too: widths can be rounded up.

    Args:
        curves: One per op.
        steps: One per op; widths are rounded up to multiples of it.
    """

    def __init__(self, curves: Sequence[Curve], steps: Sequence[int]) -> None:
        self.steps = torch.tensor(steps)
        self.reads = knots([curve.reads for curve in curves])
        self.makes = knots([curve.makes for curve in curves])
        rows, columns = self.reads.shape[1], self.makes.shape[1]
        grids = []
        for curve in curves:
            measured = torch.tensor(curve.ms, dtype=torch.double)
            grids.append(filled(measured, rows, columns))
        self.ms = torch.stack(grids)
        for dim in (1, 2):
            from_wide_to_narrow = self.ms.flip(dim)
            least = from_wide_to_narrow.cummin(dim).values
            self.ms = least.flip(dim)

    def __call__(self, reads: Tensor, makes: Tensor) -> Tensor:
        """(T,) milliseconds at (T,) widths; differentiable, with the slopes between knots."""
        row, along_rows = between(self.reads, self.rounded(reads, self.reads))
        column, along_columns = between(self.makes, self.rounded(makes, self.makes))
        number = torch.arange(len(row))

        def between_rows(column: Tensor) -> Tensor:
            low = self.ms[number, row, column]
            high = self.ms[number, row + 1, column]
            return torch.lerp(low, high, along_rows)

        return torch.lerp(between_rows(column), between_rows(column + 1), along_columns)

    def rounded(self, width: Tensor, knots: Tensor) -> Tensor:
        """(T,) widths rounded up to the steps of the kernels; the gradient is that of the width itself."""
        up = (width.detach() / self.steps).ceil() * self.steps
        up = torch.minimum(up, knots.max(1).values)
        return width + (up - width).detach()


def knots(rows: Sequence[Sequence[int]]) -> Tensor:
    """(T, K) rising knots, K at least 2; shorter rows are padded with larger values."""
    size = max([2, *map(len, rows)])
    rising = []
    for row in rows:
        missing = size - len(row)
        larger = [row[-1] + 1 + number for number in range(missing)]
        rising.append([*row, *larger])
    return torch.tensor(rising, dtype=torch.double).reshape(-1, size)


def filled(measured: Tensor, rows: int, columns: int) -> Tensor:
    """(rows, columns) measurements, padded by repeating the last row and column."""
    height, width = measured.shape
    return pad(measured[None], (0, columns - width, 0, rows - height), mode='replicate')[0]


def between(knots: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the knot below each width, and the position between it and the next knot, in [0, 1]."""
    column = width.detach()[:, None]
    above = torch.searchsorted(knots, column)[:, 0]
    below = (above - 1).clamp(0, knots.shape[1] - 2)
    number = torch.arange(len(knots))
    first = knots[number, below]
    last = knots[number, below + 1]
    way = (width - first) / (last - first)
    nearest = way.detach().clamp(0, 1)
    return below, torch.where(way == nearest, way, nearest)  # has a slope at knots, unlike clamp since torch 2.14


class Latency(Cost):
    """Milliseconds that inference takes on this machine.

    The times of ops come from a table measured by ``tools/analysis_tools/latency_table.py``, interpolated between its
    widths; layer widths are rounded up to the multiples that the machine's kernels work in.

    Args:
        table: File of the table; by default that of this machine and these settings.
        backend, device, threads, batch: As in :class:`Target`.

    Raises:
        ValueError: A setting is invalid.
    """

    def __init__(self, table: str | None = None, **settings: Any) -> None:
        self.settings, self.table = Target(**settings), table
        self.path = Path(table) if table else self.settings.path()

    def bind(self, graph: ChannelGraph, model: nn.Module | None = None) -> Latency:
        """Look up all ops of a graph.

        Raises:
            ValueError: There is no table, it is of another backend, device or batch, it was measured in another way, or
                it lacks ops of the model; the message has the command to measure them.
        """
        if not self.path.is_file():
            raise ValueError(f'no table of latencies at {self.path}; measure it: {self.command}')
        table = Table.load(self.path)
        table.check(self.path, {**asdict(self.settings), 'procedure': PROCEDURE})
        kinds = [kind_of(work) for work in graph.workload.works]
        signatures = [kind.signature for kind in kinds]
        missing, fit = table.missing(signatures), table.fits.get(digest_of(signatures))
        if missing or fit is None:
            raise ValueError(
                f'{self.path} lacks {len(missing)} ops of the model, or how their sum becomes its latency; '
                f'measure them: {self.command}'
            )
        self.look_up(graph, table, kinds)
        return self.fitted(fit)

    def narrow(self, graph: ChannelGraph) -> None:
        """Look up the ops of what is left in the table as it was: its file may have been measured again since."""
        kinds = [kind_of(work) for work in graph.workload.works]
        self.look_up(graph, self.known, kinds)
        self.fitted(self.fit)

    def look_up(self, graph: ChannelGraph, table: Table, kinds: Sequence[Kind]) -> None:
        """Find the curves of all ops of a graph.

        Args:
            graph: The graph.
            table: A table with all of them.
            kinds: One per op.
        """
        super().bind(graph)
        self.known = table
        works = graph.workload.works
        self.reads = Widths([kind.reads for kind in kinds])
        self.makes = Widths([kind.makes for kind in kinds])
        self.executed = Widths([Extent(1, work.gates) for work in works])
        self.step = table.step
        steps = [self.step if is_layer(work) else 1 for work in works]
        curves = [table.curves[kind.signature] for kind in kinds]
        self.curves = Curves(curves, steps)
        self.apart = torch.ones(len(works), dtype=torch.double)
        if self.settings.backend == 'onnxruntime':
            inside = sorted(absorbed(works))
            self.apart[inside] = 0.0

    def fitted(self, fit: Fit) -> Latency:
        """Set the fit that turns the sum over ops into the latency of a model; returns the cost itself."""
        self.fit = fit
        channels = self.graph.num_channels
        everything = torch.ones(channels, dtype=torch.double)
        per_channel = float(self.price(everything)) / max(1, channels)
        self.unit = NARROWEST * per_channel
        return self

    def price(self, value: Tensor) -> Tensor:
        """Milliseconds of one call."""
        return self.per_op(value).sum()

    def per_op(self, value: Tensor) -> Tensor:
        """(T,) milliseconds of each op when channel i counts by ``value[i]``; 0 for ops without channels."""
        counts = self.graph.workload.vectors.counts(value)
        reads, makes = self.reads(counts), self.makes(counts)
        ms = self.fit.scale * self.curves(reads, makes) + self.fit.overhead
        taken = self.apart * self.executed(counts) * ms
        has_channels = (reads > 0) & (makes > 0)
        return torch.where(has_channels, taken, 0.0)

    @property
    def command(self) -> str:
        """The command that measures a table for this machine and these settings."""
        options = f'{self.settings.options()} --table {self.table}' if self.table else self.settings.options()
        return f'{COMMAND} {options}'.rstrip()
