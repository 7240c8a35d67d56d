"""Check Gate Decorator's importance against the truth: the change of the loss when each gate is closed.

The importance of a gate is a first-order estimate (Taylor expansion) that one backward pass gives for all gates. Here
each gate is also closed by itself, and the change of every batch's loss is measured; both are sums of magnitudes over
the same training batches, in training mode as in a Tick. Reports Spearman's rank correlation of the two. CONFIG has
``gates=dict(type='DecoratorGate')``; CHECKPOINT belongs to it or to its dense start. Takes one forward of all batches
for each gate.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

from mmprune_gates import cli  # cures come before the imports below

# isort: split
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner, set_random_seed
from rich.console import Console
from rich.progress import track
from scipy.stats import spearmanr
from torch import Tensor, nn

from mmprune_gates.channels.calls import gpus_of, in_mode
from mmprune_gates.engine.checkpoint import load_weights, read_checkpoint
from mmprune_gates.engine.datasets import check_datasets
from mmprune_gates.engine.model_config import model_config_of
from mmprune_gates.gates import GateSet, gates_of, take_over_affine
from mmprune_gates.pruning import GateDecorator
from mmprune_gates.pruning.refusals import check_kind

SEED = 0
Losses = Callable[[], Iterable[Tensor]]  # the loss of each batch, the same ones on every call


@cli.reports_errors
def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = cli.config_parser(__doc__)
    parser.set_defaults(launcher='none', local_rank=0, work_dir=None)
    parser.add_argument('checkpoint', help='checkpoint of the gated run or of its dense start')
    parser.add_argument('--batches', type=int, default=4, metavar='N', help='training batches; default 4')
    parser.add_argument('--json', metavar='FILE', help='write everything there, too, with the figures of every gate')
    args = parser.parse_args(argv)
    if args.batches < 1:
        parser.error('--batches must be at least 1')
    if args.json:
        cli.check_writable(args.json)
    config = cli.runner_config(args)
    if not config.get('train_dataloader'):
        raise ValueError(f'{args.config} has no train_dataloader: give the config of a training run')
    check_datasets(config, ('train_dataloader',))
    model = gated_model(config, args.checkpoint)
    batches = training_batches(config, model, args.batches)
    report = {'config': args.config, 'checkpoint': args.checkpoint, 'batches': len(batches), **compare(model, batches)}
    print('\n'.join(table(report)))
    if args.json:
        cli.write_json(args.json, report)
    return 0


def gated_model(config: Config, checkpoint: str) -> nn.Module:
    """The model at the beginning of its first Tick: weights loaded, gates holding the size of the norms' affine.

    Raises:
        OSError, ValueError: Gates are missing or of another kind, or the checkpoint is broken or does not fit.
    """
    init_default_scope(config.get('default_scope', 'mmengine'))
    model = MODELS.build(model_config_of(config))
    gates = gates_of(model)
    check_kind(gates, GateDecorator.gate, GateDecorator.__name__)
    contents = read_checkpoint(checkpoint)
    weights = {name.removeprefix('module.'): value for name, value in contents['state_dict'].items()}
    if not any(name.startswith('gates.') for name in weights):  # a dense checkpoint: gates stay as they are
        weights |= {f'gates.{name}': value for name, value in gates.state_dict().items()}
    load_weights(model, {**contents, 'state_dict': weights}, checkpoint)
    take_over_affine(gates_of(model))  # those that are left, if channels have left the model
    return model.to(get_device())


def training_batches(config: Config, model: nn.Module, number: int) -> list[dict]:
    """The first batches of the training data, preprocessed; the same in every run."""
    set_random_seed(SEED)
    loader = Runner.build_dataloader(config.train_dataloader, seed=SEED)
    return [model.data_preprocessor(batch, True) for batch in islice(loader, number)]


def compare(model: nn.Module, batches: Sequence[dict]) -> dict:
    """Both measures of every open gate, and how well their ranks agree."""
    gates = gates_of(model)
    losses = functools.partial(batch_losses, model, batches)
    show = functools.partial(track, description='closing each gate', console=Console(stderr=True), transient=True)
    with as_in_a_tick(model):
        estimate = importance(gates, losses)
        truth = brute_force(gates, losses, show)
    members = torch.cat([torch.full((g.size,), len(gates.members(g))) for g in gates.graph.groups])
    considered = is_open(gates)
    kinds = {'all': considered, 'single': considered & (members == 1), 'tied': considered & (members > 1)}
    parts = [
        {
            'group': group.name,
            'members': len(gates.members(group)),
            'importance': estimate[group.span].tolist(),
            'loss_change': truth[group.span].tolist(),
        }
        for group in gates.graph.free
    ]
    ranks = {
        kind: {'gates': int(of.sum()), 'spearman': agreement(estimate[of], truth[of])} for kind, of in kinds.items()
    }
    return {'correlation': ranks, 'groups': parts}


def batch_losses(model: nn.Module, batches: Sequence[dict]) -> Iterator[Tensor]:
    """The loss of each batch; dropout drops the same in every pass."""
    for number, batch in enumerate(batches):
        torch.manual_seed(SEED + number)
        yield model.parse_losses(model(**batch, mode='loss'))[0]


@contextmanager
def as_in_a_tick(model: nn.Module) -> Iterator[None]:
    """Training mode; afterwards modes, running statistics and random generators are restored."""
    buffers = {buffer: buffer.clone() for buffer in model.buffers()}
    with torch.random.fork_rng(devices=gpus_of(model)), in_mode(model, training=True):
        try:
            yield
        finally:
            for buffer, value in buffers.items():
                buffer.copy_(value)


def is_open(gates: GateSet) -> Tensor:
    """(num_channels,) which channels have a gate that is not closed."""
    free = torch.zeros(gates.graph.num_channels, dtype=torch.bool)
    for group in gates.graph.free:
        free[group.span] = True
    return free & (gates.vector().detach().cpu() != 0)


def importance(gates: GateSet, losses: Losses) -> Tensor:
    """(num_channels,) importance of each gate, summed over the batches; 0 where there is no gate."""
    groups = gates.graph.free
    thetas = [gates[group.name].theta for group in groups]
    total = torch.zeros(gates.graph.num_channels, dtype=torch.double)
    for loss in losses():
        for group, grad in zip(groups, torch.autograd.grad(loss, thetas, allow_unused=True), strict=True):
            if grad is not None:
                total[group.span] += gates[group.name].importance(grad).cpu().double()
    return total


@torch.no_grad()
def brute_force(gates: GateSet, losses: Losses, progress: Callable[[Sequence], Iterable] = iter) -> Tensor:
    """(num_channels,) magnitude of the loss's change when a gate alone is closed, summed over the batches.

    Args:
        gates: The gates; they are restored afterwards.
        losses: The loss of each batch.
        progress: Iterates over a sequence and shows progress.
    """
    usual = torch.stack(list(losses())).double()
    total = torch.zeros(gates.graph.num_channels, dtype=torch.double)
    channels = [(group, channel) for group in gates.graph.free for channel in range(group.size)]
    for group, channel in progress(channels):
        theta = gates[group.name].theta
        own = theta[:, channel].clone()
        theta[:, channel] = 0
        try:
            total[group.start + channel] = (torch.stack(list(losses())).double() - usual).abs().sum()
        finally:
            theta[:, channel] = own
    return total


def agreement(first: Tensor, second: Tensor) -> float | None:
    """Spearman's rank correlation; None where there is nothing to rank."""
    if min(first.unique().numel(), second.unique().numel()) < 2:
        return None
    return float(spearmanr(first.numpy(), second.numpy()).statistic)


def table(report: dict) -> list[str]:
    """The report as lines."""
    lines = [
        f'Taylor importance against closing each gate, {report["batches"]} batches',
        f'{"gates":24}{"number":>8}{"Spearman":>10}',
    ]
    names = {'all': 'all', 'single': 'on one module', 'tied': 'shared by several'}
    for kind, row in report['correlation'].items():
        value = '-' if row['spearman'] is None else f'{row["spearman"]:.3f}'
        lines.append(f'{names[kind]:24}{row["gates"]:8}{value:>10}')
    return lines


if __name__ == '__main__':
    sys.exit(main())
