"""Ops and models in onnxruntime; its own profiler times many ops in one graph, each with inputs of its own."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmprune_gates.budget.latency_table import Target
from mmprune_gates.engine.forwards import inference_forward
from mmprune_gates.engine.onnx_graph import Deployed, Proto, onnx_of_batches, require_packages, run_session, session_of
from mmprune_gates.timing.clock import Call, clock_of
from mmprune_gates.timing.narrowing import Narrowed

REPEATS = (3, 8)  # runs of a graph after the first, which warms up: at least and at most
ENOUGH_S = 3  # total time of these runs, after which there are only the least number
ELEMENTS = 2**26  # of all tensors of one graph, at most
REORDERS = ('ReorderInput', 'ReorderOutput')  # between layouts; in a whole model few are left


class Onnxruntime:
    """Times ops and prepares models on the CPU.

    Args:
        target: Device and threads.

    Raises:
        ValueError: A package is missing, or the device is not the CPU.
    """

    def __init__(self, target: Target) -> None:
        require_packages()
        if target.device != 'cpu':
            raise ValueError(f"backend='onnxruntime' measures on the CPU, not on device={target.device!r}")
        self.threads = target.threads
        self.now = clock_of(target.device, target.threads)
        torch.set_num_threads(target.threads)

    def call(self, model: nn.Module, images: Tensor) -> Call:
        """A function that runs a model on (N, C, H, W) images."""
        module, (batch, *shape) = Deployed(model, forward=inference_forward), images.shape
        proto, _ = onnx_of_batches(module, shape, batch)
        session = session_of(proto, self.threads)

        def run() -> None:
            run_session(session, images)

        return run

    def ms(self, ops: Sequence[Narrowed]) -> list[float | None]:
        """Milliseconds of each op, measured in turn; None for those that cannot be translated."""
        took: list[float | None] = []
        for part in parts(ops):
            took += self.of_graph(part)
        return took

    def of_graph(self, ops: Sequence[Narrowed]) -> list[float | None]:
        """Milliseconds of ops that fit into one graph; None for those that cannot be translated."""
        try:
            model = translated(Side(ops))
        except torch.onnx.errors.OnnxExporterError:
            if len(ops) == 1:
                return [None]
            half = len(ops) // 2
            return [*self.of_graph(ops[:half]), *self.of_graph(ops[half:])]
        return self.profiled(model, Side(ops).inputs())

    def profiled(self, model: Proto, inputs: Sequence[Tensor]) -> list[float | None]:
        """Milliseconds of each result of a graph."""
        import onnx

        with tempfile.TemporaryDirectory() as folder:
            prefix, optimized = f'{folder}/profile', f'{folder}/optimized.onnx'
            files = {'profile_file_prefix': prefix, 'optimized_model_filepath': optimized}
            session = session_of(model, self.threads, enable_profiling=True, **files)
            feeds = {}
            for value, tensor in zip(session.get_inputs(), inputs, strict=True):
                feeds[value.name] = tensor.numpy()
            session.run(None, feeds)
            begin = self.now()
            for repeat in range(REPEATS[1]):
                if repeat < REPEATS[0] or self.now() - begin < ENOUGH_S:
                    session.run(None, feeds)
            profile = Path(session.end_profiling())
            events = json.loads(profile.read_text())
            owners = owners_of(onnx.load(optimized))
        return fastest(events, owners, len(session.get_outputs()))


def translated(side: Side) -> Proto:
    """Ops as an ONNX model with numbered results.

    Optimised by torch, as exported models are: else a convolution without a bias gets one that is computed from its
    input's type, and onnxruntime, which takes that for a variable, runs a slower kernel.
    """
    inputs = side.inputs()
    names = [f'input{number}' for number in range(len(inputs))]
    results = [f'result{number}' for number in range(len(side.ops))]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of torch, about itself
        program = torch.onnx.export(
            side, (inputs,), dynamo=True, input_names=names, output_names=results, optimize=True, verbose=False
        )
    assert program is not None  # it is, for dynamo=True
    return program.model_proto


class Side(nn.Module):
    """Runs ops side by side; their constants are its buffers, of a value that no optimiser can leave out.

    Args:
        ops: The ops.
    """

    def __init__(self, ops: Sequence[Narrowed]) -> None:
        super().__init__()
        self.ops = ops
        for number, shape, constant in self.tensors():
            if constant:
                self.register_buffer(f'constant{number}', torch.full(shape, 0.5))

    def tensors(self) -> Iterator[tuple[int, tuple[int, ...], bool]]:
        """Number and shape of each tensor of all ops, and whether it is a constant."""
        number = 0
        for op in self.ops:
            for shape, operand in zip(op.shapes, op.work.operands, strict=True):
                yield number, shape, operand.constant
                number += 1

    def inputs(self) -> list[Tensor]:
        """All tensors that are not constants."""
        return [torch.ones(shape) for _, shape, constant in self.tensors() if not constant]

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        """The (first) result of each op."""
        left = iter(inputs)
        given = []
        for number, _, is_constant in self.tensors():
            tensor = getattr(self, f'constant{number}') if is_constant else next(left)
            given.append(tensor)
        results, begin = [], 0
        for op in self.ops:
            end = begin + len(op.shapes)
            args, kwargs = op.arguments(given[begin:end])
            result = op.work.target(*args, **kwargs)
            results.append(result if isinstance(result, Tensor) else result[0])
            begin = end
        return results


def parts(ops: Sequence[Narrowed]) -> Iterator[list[Narrowed]]:
    """The ops in parts that each fit into a graph."""
    part: list[Narrowed] = []
    elements = 0
    for op in ops:
        own = sum(map(prod, op.shapes))
        if part and elements + own > ELEMENTS:
            yield part
            part, elements = [], 0
        part.append(op)
        elements += own
    if part:
        yield part


def owners_of(model: Proto) -> dict[str, int]:
    """Name of each node of an optimised graph -> number of the result to which it contributes."""
    makers = {name: node for node in model.graph.node for name in node.output}
    found: dict[str, int] = {}
    for number, result in enumerate(model.graph.output):
        open_ = [result.name]
        while open_:
            node = makers.get(open_.pop())
            if node is not None and node.name not in found:
                found[node.name] = number
                open_ += node.input
    return found


def fastest(events: Sequence[Mapping[str, Any]], owners: Mapping[str, int], count: int) -> list[float | None]:
    """Least milliseconds of each op, from a profile of several runs: other processes only ever add to them.

    Args:
        events: Events recorded by onnxruntime.
        owners: Node -> number of the op that it is part of.
        count: Number of ops.
    """
    ms: dict[str, list[float]] = defaultdict(list)
    for event in events:
        name = event.get('name', '').removesuffix('_kernel_time')
        if name not in owners:
            continue
        if event['args'].get('op_name') not in REORDERS:
            ms[name].append(event['dur'] / 1e3)
    total = [0.0] * count
    for name, own in ms.items():
        total[owners[name]] += min(own[1:])
    return list(total)
