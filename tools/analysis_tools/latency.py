"""Latency of two models on this machine, measured in alternating pairs within one run.

Example::

    python tools/analysis_tools/latency.py DENSE_CONFIG SLIM_CONFIG --shape 3 64 96 --backend both

The timed part is the one whose MACs are counted: up to the logits of the head, before they are resized to the image. On
one CPU thread, times are processor time, so that other processes hardly matter.
"""

from __future__ import annotations

import argparse
import statistics
import sys

from mmprune_gates import cli  # cures come before the imports below

# isort: split
import torch
from torch import nn

from mmprune_gates.budget.latency_table import BACKENDS, Target
from mmprune_gates.checks import IMAGE, checked
from mmprune_gates.engine.builders import inference_model
from mmprune_gates.engine.forwards import inference_forward
from mmprune_gates.engine.model_config import default_input_shape, model_config_of
from mmprune_gates.timing.clock import Call, Clock
from mmprune_gates.timing.table import backend_of


def check_device(name: str) -> None:
    """Refuse a device that is not there.

    Raises:
        ValueError: It is not there.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f'--device {name} cannot be used: {error}') from error


@torch.no_grad()
def check_runs(path: str, model: nn.Module, inputs: torch.Tensor) -> None:
    """Check that a model accepts an input.

    Raises:
        ValueError: Its forward fails.
    """
    try:
        inference_forward(model, inputs)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f'the model of {path} does not take inputs of shape {tuple(inputs.shape)} ({error}); give --shape C H W'
        ) from error


def seconds(once: Call, repeats: int, now: Clock) -> float:
    """Mean seconds of one call."""
    begin = now()
    for _ in range(repeats):
        once()
    return (now() - begin) / repeats


def compare(first: Call, second: Call, pairs: int, now: Clock, repeats: int = 5) -> dict:
    """Time two functions in turn, A B A B ...

    Args:
        first: A.
        second: B.
        pairs: Number of pairs.
        now: The clock.
        repeats: Calls in a row whose mean counts.

    Returns:
        Median milliseconds of both, and the ratio first / second of each pair: median and quartiles.
    """
    for once in (first, second):
        seconds(once, repeats, now)
    times = [(seconds(first, repeats, now), seconds(second, repeats, now)) for _ in range(pairs)]
    low, middle, high = statistics.quantiles([a / b for a, b in times], n=4)
    return {
        'first_ms': 1e3 * statistics.median(a for a, _ in times),
        'second_ms': 1e3 * statistics.median(b for _, b in times),
        'ratio': middle,
        'ratio_quartiles': [low, high],
        'pairs': pairs,
        'threads': torch.get_num_threads(),
    }


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.plain_parser(__doc__)
    parser.add_argument('first', help='config of a model, usually the dense one')
    parser.add_argument('second', help='config of another, usually slim.py')
    parser.add_argument('--shape', type=int, nargs=3, metavar=('C', 'H', 'W'), help="default: the first config's")
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--pairs', type=int, default=30)
    parser.add_argument('--threads', type=int, default=1, help='CPU threads')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--backend', choices=[*BACKENDS, 'both'], default='torch', help='what runs the models')
    parser.add_argument('--json', metavar='FILE', help='also write the figures here; of both, an entry for each')
    args = parser.parse_args(argv)
    if min(args.batch, args.threads) < 1 or args.pairs < 3:
        parser.error('--batch and --threads must be at least 1 and --pairs at least 3')
    if args.backend != 'torch' and args.device != 'cpu':
        parser.error('onnxruntime is timed on the CPU: leave --device out, or take --backend torch')
    return args


@cli.reports_errors
def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = parse(argv)
    if args.json:
        cli.check_writable(args.json)
    check_device(args.device)
    torch.set_num_threads(args.threads)
    configs = [cli.load_config(path) for path in (args.first, args.second)]
    shape = checked('--shape', args.shape, IMAGE) if args.shape else default_input_shape(model_config_of(configs[0]))
    first, second = (inference_model(config).to(args.device) for config in configs)
    inputs = torch.randn(args.batch, *shape, device=args.device)
    check_runs(args.first, first, inputs)
    check_runs(args.second, second, inputs)
    found = {}
    print(f'input {tuple(inputs.shape)}, {args.threads} threads, {args.pairs} alternating pairs')
    for name in BACKENDS if args.backend == 'both' else [args.backend]:
        backend = backend_of(Target(name, args.device, args.threads, args.batch))
        found[name] = compare(*(backend.call(model, inputs) for model in (first, second)), args.pairs, backend.now)
        print(told(name, found[name]), flush=True)
    if args.json:
        cli.write_json(args.json, found if args.backend == 'both' else found[args.backend])
    return 0


def told(name: str, found: dict) -> str:
    """The figures of one backend in words."""
    low, high = found['ratio_quartiles']
    return (
        f'{name}: first {found["first_ms"]:.2f} ms, second {found["second_ms"]:.2f} ms, '
        f'ratio {found["ratio"]:.2f} (quartiles {low:.2f} to {high:.2f})'
    )


if __name__ == '__main__':
    sys.exit(main())
