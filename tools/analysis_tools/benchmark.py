"""Measure what gates cost in training: a gated model against the same one without gates.

Both take training steps (forward, losses, backward, optimiser) in turn, in one process; the gated step includes the
config's pruning hooks, in the phase in which they move the gates (GDP) or in a Tock or Tick (Gate Decorator). Reports
the ratio of the times of each pair, the bytes of activations that the forward saves for the backward, the peak memory
of a step, and that of training: the step's, with the weights and the optimiser's state. On one CPU thread, times are
processor time, so that other processes hardly matter.

With --shrunk, a checkpoint of a run whose channels have left the model (shrink=True) is a third model, in turn with the
other two: what a step costs from then on. With --site, all gates stand in front of the consumers of their channels, on
their input or their weight, instead of where they cost least.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

from mmprune_gates import cli  # cures come before the imports below

# isort: split
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from step_memory import held_bytes, peak_bytes, saved_bytes
from torch import Tensor, nn

from mmprune_gates.budget.tick_tock import TICK, TOCK
from mmprune_gates.engine.builders import build_gate
from mmprune_gates.engine.checkpoint import STATE, read_checkpoint
from mmprune_gates.engine.decorator_hook import GateDecoratorHook
from mmprune_gates.engine.model_config import (
    GATED,
    default_input_shape,
    model_config_of,
    stock_model,
    without_pretrained,
)
from mmprune_gates.engine.registry import HOOKS
from mmprune_gates.engine.samples import random_labels
from mmprune_gates.engine.shrinking import shrunk_in
from mmprune_gates.gates import attach_gates, detach_gates
from mmprune_gates.gates.placement import INPUT, WEIGHT
from mmprune_gates.timing.clock import Clock, clock_of

DTYPES = {'fp32': None, 'bf16': torch.bfloat16}
WARM_UP = 2
MEMORY = {
    'saved_activation_bytes': 'saved activations',
    'step_peak_bytes': 'peak of a step',
    'training_peak_bytes': 'peak of training',
}
MAX_ITERS = 40_000  # of the run that the steps are taken from


@dataclass
class Trainee:
    """A model in training, with its hooks.

    Attributes:
        model: The model.
        optim: Its optimiser wrapper.
        runner: The part of a runner that hooks see.
        hooks: Pruning hooks.
        now: The clock.
        seconds: Time of each step.
    """

    model: nn.Module
    optim: OptimWrapper
    runner: SimpleNamespace
    hooks: list
    now: Clock
    seconds: list[float] = field(default_factory=list)

    def losses(self, inputs: Tensor, samples: list, dtype: torch.dtype | None) -> Tensor:
        """Forward, with the sum of all losses."""
        with torch.autocast(inputs.device.type, dtype=dtype, enabled=dtype is not None):
            return self.model.parse_losses(self.model(inputs, samples, mode='loss'))[0]

    def step(self, inputs: Tensor, samples: list, dtype: torch.dtype | None) -> None:
        """One timed training iteration."""
        begin = self.now()
        for hook in self.hooks:
            hook.before_train_iter(self.runner, self.runner.iter)
        self.optim.update_params(self.losses(inputs, samples, dtype))
        for hook in self.hooks:
            hook.after_train_iter(self.runner, self.runner.iter)
        self.seconds.append(self.now() - begin)
        self.runner.iter += 1


@cli.reports_errors
def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = parse(argv)
    if args.json:
        cli.check_writable(args.json)
    report = report_of(args)
    print('\n'.join(table(report)))
    if args.json:
        cli.write_json(args.json, report)
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.config_parser(__doc__)
    parser.set_defaults(launcher='none', local_rank=0, work_dir=None)
    parser.add_argument('--device', default='cpu', choices=('cpu', 'cuda'))
    parser.add_argument('--crop', type=int, nargs=2, metavar=('H', 'W'), help="default: the config's input size")
    parser.add_argument('--batch', type=int, default=2)
    parser.add_argument('--pairs', type=int, default=10)
    parser.add_argument('--amp-dtype', default='fp32', choices=DTYPES)
    parser.add_argument('--phase', choices=(TICK, TOCK), default=TOCK, help='of a run with GateDecoratorHook')
    parser.add_argument('--site', choices=(INPUT, WEIGHT), help='where all gates stand; default: where they cost least')
    parser.add_argument('--shrunk', metavar='CHECKPOINT', help='of a gated run whose channels have left the model')
    parser.add_argument('--json', metavar='FILE', help='also write everything there')
    args = parser.parse_args(argv)
    if args.batch < 1 or args.pairs < 3:
        parser.error('--batch must be at least 1 and --pairs at least 3')
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise ValueError('--device cuda: no GPU is available')
    return args


def report_of(args: argparse.Namespace) -> dict:
    """Figures of the gated and the ungated model, from alternating steps; each goes first every other time."""
    config = cli.runner_config(args)
    gated, ungated, shape = pair(config, args)
    models = {'gated': gated, 'ungated': ungated}
    if args.shrunk:
        models['shrunk'] = shrunk(config, shape, args)
    batch = inputs_and_samples(config, shape, args.batch, args.device)
    dtype = DTYPES[args.amp_dtype]
    for number in range(WARM_UP + args.pairs):
        turns = list(models.values())
        for one in turns if number % 2 else reversed(turns):
            one.step(*batch, dtype)
    times = {name: one.seconds[WARM_UP:] for name, one in models.items()}
    report = {
        'config': args.config,
        'torch': torch.__version__,
        'threads': torch.get_num_threads(),
        'device': torch.cuda.get_device_name() if args.device == 'cuda' else 'cpu',
        'crop': list(shape[1:]),
        'batch': args.batch,
        'dtype': args.amp_dtype,
        'gates_on': Counter(placement.kind for placement in gated.model.gates.placements),
        'seconds': times,
        'time_ratio': time_ratio(times['gated'], times['ungated']),
    }
    if args.shrunk:
        report['shrunk_time_ratio'] = time_ratio(times['shrunk'], times['ungated'])
    saved = {kind: saved_bytes(partial(one.losses, *batch, dtype)) for kind, one in models.items()}
    peaks = {kind: peak_bytes(partial(one.step, *batch, dtype), args.device) for kind, one in models.items()}
    training = {kind: held_bytes(one.model, one.optim.optimizer) + peaks[kind] for kind, one in models.items()}
    memory = {'saved_activation_bytes': saved, 'step_peak_bytes': peaks, 'training_peak_bytes': training}
    for name, found in memory.items():
        report[name] = {**found, 'ratio': found['gated'] / found['ungated']}
        if args.shrunk:
            report[name]['shrunk_ratio'] = found['shrunk'] / found['ungated']
    return report


def time_ratio(times: list[float], others: list[float]) -> dict[str, Any]:
    """Ratios of the times of steps to those of others at the same turn: median, quartiles and range."""
    ratios = sorted(a / b for a, b in zip(times, others, strict=True))
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {'median': middle, 'quartiles': [low, high], 'range': [ratios[0], ratios[-1]]}


def shrunk(config: Config, shape: tuple[int, ...], args: argparse.Namespace) -> Trainee:
    """The gated model of a checkpoint after channels have left it.

    Raises:
        OSError, ValueError: The checkpoint is broken, belongs to another model, or no channels have left it.
    """
    contents = read_checkpoint(args.shrunk)
    if not shrunk_in(contents.get(STATE)):
        raise ValueError(
            f'--shrunk {args.shrunk}: no channels have left the model there; give a checkpoint of a run with '
            'shrink=True, saved after that'
        )
    model = without_pretrained(config.model.to_dict())
    found = trainee(config, {**model, 'input_shape': shape}, args)
    for hook in found.hooks:
        hook.after_load_checkpoint(found.runner, contents)
        hook.restore(found.runner, contents[STATE])
    found.model.load_state_dict(contents['state_dict'])
    return found


def pair(config: Config, args: argparse.Namespace) -> tuple[Trainee, Trainee, tuple[int, ...]]:
    """The gated and the ungated model of a config with the same weights, and the shape of their input.

    Raises:
        ValueError: The config has no gates, or no optimiser.
    """
    if config.model.get('type') != GATED:
        raise ValueError(f'{args.config}: model.type is {config.model.get("type")!r}, not {GATED}')
    if not config.get('optim_wrapper'):
        raise ValueError(f'{args.config} has no optim_wrapper: give the config of a training run')
    init_default_scope(config.get('default_scope', 'mmengine'))
    model = model_config_of(config)
    shape = (3, *args.crop) if args.crop else default_input_shape(model)
    model['input_shape'] = shape  # where gates go may depend on it
    gated = trainee(config, model, args)
    ungated = trainee(config, stock_model(model), args)
    ungated.model.load_state_dict(gated.model.state_dict(), strict=False)  # all but the gates
    return gated, ungated, shape


def trainee(config: Config, model_config: dict, args: argparse.Namespace) -> Trainee:
    """A model on its device, in training mode, with optimiser and, if it has gates, the pruning hooks."""
    torch.manual_seed(0)
    model = MODELS.build(ConfigDict(model_config))
    gated = model_config['type'] == GATED
    if gated and args.site:
        move_gates(model, args.site, model_config.get('gates') or {})
    model = revert_sync_batchnorm(model).to(args.device).train()
    optim_config = {**config.optim_wrapper, 'type': 'OptimWrapper'}
    optim_config.pop('loss_scale', None)
    optim = build_optim_wrapper(model, ConfigDict(optim_config))
    runner = SimpleNamespace(
        cfg=config,
        hooks=[],
        _resume=True,  # where a checkpoint is given
        model=model,
        optim_wrapper=optim,
        iter=0,
        max_iters=MAX_ITERS,
        train_loop=SimpleNamespace(dataloader=range(MAX_ITERS)),
        param_schedulers=[],
        logger=MMLogger.get_current_instance(),
        message_hub=MessageHub.get_instance('benchmark'),
    )
    hooks = [HOOKS.build(hook) for hook in pruning_hooks(config)] if gated else []
    for hook in hooks:
        hook.shrink = False  # all timed steps have the same widths
        hook.before_run(runner)
        hook.before_train(runner)
        if isinstance(hook, GateDecoratorHook):
            hook.pruner.controller.begin(args.phase, MAX_ITERS)
            hook.pruner.prepare()
        else:
            schedule = hook.pruner.controller.schedule
            middle = (schedule.begin + schedule.end) / 2  # of the phase in which gates move
            hook.pruner.done = runner.iter = round(middle * MAX_ITERS)
    return Trainee(model, optim, runner, hooks, clock_of(args.device, torch.get_num_threads()))


def move_gates(model: nn.Module, site: str, config: dict) -> None:
    """Put all gates in front of the consumers of their channels, wherever else they could stand.

    Args:
        model: A gated model; its gates are made anew.
        site: ``input`` or ``weight`` of the consumers. Where a consumer has no such place, the other one is taken.
        config: Config of the gates.
    """
    graph = detach_gates(model)
    size = 0 if site == WEIGHT else sys.maxsize  # the smaller of the two has the gate
    reads = [replace(read, gated=torch.zeros_like(read.gated), weight_size=size) for read in graph.reads]
    attach_gates(model, replace(graph, reads=tuple(reads)), partial(build_gate, config))


def pruning_hooks(config: Config) -> Iterator[dict]:
    """Configs of the hooks that move gates; phases of Gate Decorator last as long as the benchmark."""
    for hook in config.get('custom_hooks') or []:
        if str(hook['type']).endswith('.PolarizationHook'):
            yield hook
        elif str(hook['type']).endswith('.GateDecoratorHook'):
            yield {**hook, 'by_epoch': False, 'subset': 1.0, 'tick': MAX_ITERS, 'tock': MAX_ITERS}


def inputs_and_samples(config: Config, shape: tuple[int, ...], batch: int, device: str) -> tuple[Tensor, list]:
    """Random images and labels for a segmentor or a classifier."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(batch, *shape, generator=generator).to(device)
    return inputs, random_labels(config.model, inputs)


def table(report: dict) -> list[str]:
    """The report as lines."""
    seconds = report['seconds']
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    lines = [
        f'{report["device"]}, {report["dtype"]}, batch {report["batch"]} of {tuple(report["crop"])}, '
        f'{len(seconds["gated"])} pairs, {report["threads"]} threads',
        f'{"":24}' + ''.join(f'{name:>12}' for name in seconds),
        f'{"step, s (median)":24}' + ''.join(f'{value:12.4f}' for value in middle.values()),
    ]
    for name, what in MEMORY.items():
        lines.append(f'{what + ", MB":24}' + ''.join(f'{report[name][kind] / 1e6:12.2f}' for kind in seconds))
    for name, key in (('gated', 'time_ratio'), ('shrunk', 'shrunk_time_ratio')):
        if key in report:
            low, high = report[key]['quartiles']
            least, most = report[key]['range']
            lines.append(
                f'{name} / ungated, time: {report[key]["median"]:.4f}, quartiles {low:.4f} to {high:.4f}, range '
                f'{least:.4f} to {most:.4f}'
            )
    for kind, key in (('gated', 'ratio'), ('shrunk', 'shrunk_ratio')):
        if kind in seconds:
            ratios = [f'{what} {report[name][key]:.4f}' for name, what in MEMORY.items()]
            lines.append(f'{kind} / ungated: {", ".join(ratios)}')
    return lines


if __name__ == '__main__':
    sys.exit(main())
