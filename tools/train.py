"""Train a model by its config: dense, gated or slim.

Like train.py of mmsegmentation and mmpretrain, but bad input ends with one message before anything is built.
"""

from __future__ import annotations

import copy
import sys

from mmprune_gates import cli  # cures come before the imports below

# isort: split
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmprune_gates.engine.checkpoint import load_weights, read_checkpoint
from mmprune_gates.engine.datasets import check_datasets, check_samples
from mmprune_gates.engine.files import remove_leftovers
from mmprune_gates.engine.resuming import latest_checkpoint, read_run
from mmprune_gates.engine.running import unwrapped


@cli.reports_errors
def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = cli.runner_parser(__doc__)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CKPT',
        help='go on from CKPT, or from the latest checkpoint of the work folder (a fresh start if there is none)',
    )
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    args = parser.parse_args(argv)
    config = cli.runner_config(args)
    if args.amp:
        use_amp(config)
    check_datasets(config, ('train_dataloader', 'val_dataloader'))
    checkpoint = set_resume(config, args.resume)
    remove_leftovers(config.work_dir, '.pth')
    runner = RUNNERS.build(config) if 'runner_type' in config else Runner.from_cfg(config)
    if checkpoint is not None:
        # The Runner only warns of what does not fit; its own model becomes narrower as its pruner resumes, not here.
        load_weights(copy.deepcopy(unwrapped(runner)), *checkpoint)
        del checkpoint
    check_samples(runner.train_loop, 'train_dataloader')
    check_samples(runner.val_loop, 'val_dataloader')
    runner.train()
    return 0


def use_amp(config: Config) -> None:
    """Switch the optimiser wrapper to mixed precision.

    Raises:
        ValueError: There is no GPU, or the wrapper has no mixed precision.
    """
    kind = config.optim_wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ValueError(f'--amp needs optim_wrapper.type OptimWrapper, the config has {kind!r}')
    if get_device() == 'cpu':
        raise ValueError('--amp needs a GPU, and none is available')
    config.optim_wrapper.type = 'AmpOptimWrapper'
    config.optim_wrapper.setdefault('loss_scale', 'dynamic')


def set_resume(config: Config, resume: str | None) -> tuple[dict, str] | None:
    """Set the checkpoint to resume from in the config; ``load_from`` stays where there is none yet.

    Args:
        config: The config; its own ``resume`` counts without ``resume``.
        resume: A checkpoint, or ``auto`` for the latest of the work folder.

    Returns:
        The checkpoint's contents and path, or None where training starts afresh.

    Raises:
        OSError, ValueError: The checkpoint is missing, broken, or not from a training run.
    """
    start = config.get('load_from')
    if resume is None and config.get('resume'):
        resume = start or 'auto'  # as mmengine's Runner
    if resume is not None and '://' in resume:
        config.resume, config.load_from = True, resume
        return None  # mmengine fetches it
    path = latest_checkpoint(config.work_dir) if resume == 'auto' else resume
    config.resume = path is not None
    if path is None:
        if start and '://' not in str(start):
            read_checkpoint(str(start))
        return None
    config.load_from = path
    return read_run(path), path


if __name__ == '__main__':
    sys.exit(main())
