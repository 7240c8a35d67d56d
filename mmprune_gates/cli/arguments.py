"""Arguments of the command lines, and the config that follows from them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.registry import HOOKS, OPTIMIZERS

from mmprune_gates.checks import MAPPING, checked, shown
from mmprune_gates.engine.checkpoint import UNSAFE
from mmprune_gates.engine.model_config import is_ours
from mmprune_gates.engine.product import complete, is_product

# Keys of a config that must be dictionaries if they are given.
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
LOOPS = ('train_cfg', 'val_cfg', 'test_cfg')
DICTIONARIES = (*LOADERS, *LOOPS, 'optim_wrapper', 'default_hooks', 'visualizer', 'env_cfg', 'custom_imports')
LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')
# Launcher -> the program that starts its ranks, and an environment variable that it sets.
STARTERS = {
    'pytorch': ('torchrun', 'RANK'),
    'slurm': ('srun', 'SLURM_PROCID'),
    'mpi': ("Open MPI's mpirun", 'OMPI_COMM_WORLD_RANK'),
}


class Options(DictAction):
    """``key=value`` pairs, or a usage error."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        """Add the pairs to those already given."""
        for value in values:
            balanced = value.count('[') == value.count(']') and value.count('(') == value.count(')')
            if '=' not in value or not balanced:
                parser.error(f'{option_string} takes key=value pairs, got {value!r}')
        super().__call__(parser, namespace, values, option_string)


def plain_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser for a tool, described by its module's docstring."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def config_parser(description: str) -> argparse.ArgumentParser:
    """A parser for a tool that reads a config."""
    parser = plain_parser(description)
    parser.add_argument('config', help='config file; its custom_imports are also searched beside it')
    parser.add_argument(
        '--cfg-options', nargs='+', action=Options, default={}, metavar='KEY=VALUE', help='override keys of the config'
    )
    return parser


def runner_parser(description: str) -> argparse.ArgumentParser:
    """A parser for a tool that starts a Runner."""
    parser = config_parser(description)
    parser.add_argument('--work-dir', help='folder for logs and checkpoints; default ./work_dirs/NAME_OF_CONFIG')
    parser.add_argument('--launcher', choices=LAUNCHERS, default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by torch.distributed.launch')
    return parser


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """A config with overrides.

    Modules of ``custom_imports`` are found on ``PYTHONPATH``, in the current folder and beside the config. From here
    on every loader of this process reads checkpoints with ``weights_only``.

    Raises:
        ValueError: The config cannot be read, or an override does not fit.
    """
    # mmengine's loader has no argument for it, and that of the onedl fork silently falls back to unsafe loading.
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    os.environ.pop(UNSAFE, None)
    beside = Path(path).absolute().parent
    complete(beside)  # the config may be that of a product
    for folder in ('', str(beside)):
        if folder not in sys.path:
            sys.path.append(folder)
    try:
        config = Config.fromfile(path)
    except Exception as error:  # a config is a program
        reason = str(error)
        cause = str(error.__cause__ or error.__context__ or '')
        if cause not in reason:
            reason = f'{reason} ({cause})'
        raise ValueError(f'config {path} cannot be read: {type(error).__name__}: {reason}') from error
    try:
        config.merge_from_dict(overrides or {})
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        told = error.args[0] if error.args else error
        raise ValueError(f'--cfg-options does not fit {path}: {told}') from error
    check_config(config, path)
    return config


def check_config(config: Config, path: str | Path) -> None:
    """Refuse a config without a model, or with parts of the wrong type.

    Raises:
        ValueError: It is such a config; names the key.
    """
    if not config.get('model'):
        raise ValueError(f'config {path} has no model')
    for key in ('model', *DICTIONARIES):
        if config.get(key) is not None:
            checked(f'config {path}: {key}', config[key], MAPPING)
    hooks = config.get('custom_hooks') or []
    if not isinstance(hooks, (list, tuple)):
        raise ValueError(f'config {path}: custom_hooks must be a list, got {shown(hooks)}')
    for number, hook in enumerate(hooks):
        if isinstance(hook, Mapping) and 'type' not in hook:
            raise ValueError(f'config {path}: custom_hooks[{number}] has no type: {shown(dict(hook))}')


def runner_config(args: argparse.Namespace) -> Config:
    """The config of a run: launcher, work folder, and what mmpretrain's own tools add to its data loaders.

    Raises:
        ValueError: It cannot be read, one of our hooks refuses its arguments, its work folder holds a slim model, or
            the launcher did not start this process.
    """
    check_launcher(args.launcher)
    local_rank = str(args.local_rank)
    if args.launcher == 'mpi':  # mmengine reads it for the device of a process, but not for that of its model
        local_rank = os.environ.get('OMPI_COMM_WORLD_LOCAL_RANK', local_rank)
    os.environ.setdefault('LOCAL_RANK', local_rank)
    config = load_config(args.config, args.cfg_options)
    config.launcher = args.launcher
    config.work_dir = work_folder(args.work_dir or config.get('work_dir'), args.config)
    if config.get('default_scope') == 'mmpretrain':
        complete_loaders(config)
    for hook in config.get('custom_hooks') or []:
        if isinstance(hook, dict) and is_ours(hook):
            arguments = dict(hook)
            arguments.pop('priority', None)
            HOOKS.build(arguments)  # refuses bad ones
    check_optimizer(config)
    return config


def work_folder(named: str | None, config: str) -> str:
    """The work folder of a run, in which mmengine writes a copy of the config.

    Args:
        named: The folder that the command line or the config names; work_dirs/NAME_OF_CONFIG by default.
        config: Path of the config.

    Raises:
        ValueError: That folder holds a slim model, whose ``slim.py`` the copy would replace.
    """
    if named is None:
        default = str(Path('work_dirs', Path(config).stem))
        return f'{default}_run' if is_product(Path(default)) else default
    if is_product(Path(named)):
        raise ValueError(f'the work folder {named} holds a slim model, which a run would overwrite: give another one')
    return named


def check_launcher(launcher: str) -> None:
    """Refuse a launcher that did not start this process.

    Raises:
        ValueError: It did not.
    """
    if launcher not in STARTERS:
        return
    program, variable = STARTERS[launcher]
    if variable not in os.environ:
        raise ValueError(f'--launcher {launcher}: {variable} is not set; start the ranks with {program}')


def complete_loaders(config: Config) -> None:
    """Add the settings that mmpretrain's own tools add to the data loaders of a config."""
    for name in LOADERS:
        loader = config.get(name)
        if loader:
            loader.setdefault('pin_memory', True)
            loader.setdefault('collate_fn', {'type': 'default_collate'})
            loader.setdefault('persistent_workers', loader.get('num_workers', 0) > 0)


def check_optimizer(config: Config) -> None:
    """Refuse an optimiser that is not registered; mmengine would call None.

    Raises:
        ValueError: It is not registered.
    """
    optimizer = (config.get('optim_wrapper') or {}).get('optimizer') or {}
    kind = checked('optim_wrapper.optimizer', optimizer, MAPPING).get('type')
    with OPTIMIZERS.switch_scope_and_registry(config.get('default_scope')) as registry:
        if isinstance(kind, str) and registry.get(kind) is None:
            raise ValueError(f'optim_wrapper.optimizer.type {kind!r} is not registered')
