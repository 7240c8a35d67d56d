"""Test a checkpoint by its config: dense, gated or slim.

Like test.py of mmsegmentation and mmpretrain, but a checkpoint that does not fit the model is an error.
"""

from __future__ import annotations

import sys
from typing import Any

from mmprune_gates import cli  # cures come before the imports below

# isort: split
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmprune_gates.engine.checkpoint import load_weights, read_checkpoint
from mmprune_gates.engine.datasets import check_datasets, check_samples
from mmprune_gates.engine.running import unwrapped


@cli.reports_errors
def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = cli.runner_parser(__doc__)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--show-dir', help='folder for pictures of the predictions')
    parser.add_argument('--out-json', metavar='FILE', help='write the metrics there')
    args = parser.parse_args(argv)
    config = cli.runner_config(args)
    config.load_from, config.resume = args.checkpoint, False
    if args.show_dir:
        draw_predictions(config, args.show_dir)
    if args.out_json:
        cli.check_writable(args.out_json)
    check_datasets(config, ('test_dataloader',))
    checkpoint = read_checkpoint(args.checkpoint)
    runner = RUNNERS.build(config) if 'runner_type' in config else Runner.from_cfg(config)
    load_weights(unwrapped(runner), checkpoint, args.checkpoint)  # the Runner, which loads it again, only warns
    check_samples(runner.test_loop, 'test_dataloader')
    metrics = runner.test()
    if args.out_json:
        cli.write_json(args.out_json, {name: plain(value) for name, value in metrics.items()})
    return 0


def plain(value: Any) -> Any:
    """A metric as JSON takes it: a number, or for metrics of each class (nested) lists."""
    return value.tolist() if hasattr(value, 'tolist') else value


def draw_predictions(config: Config, folder: str) -> None:
    """Let the visualisation hook paint every prediction (mmsegmentation's own default is one batch in fifty).

    Raises:
        ValueError: The config has no such hook.
    """
    hook = config.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise ValueError('--show-dir needs default_hooks.visualization in the config')
    if config.get('default_scope') == 'mmpretrain':
        hook.update(enable=True, out_dir=folder, interval=1)
    else:
        hook.update(draw=True, interval=1)
        visualizer = config.get('visualizer') or {
            'type': 'SegLocalVisualizer',
            'vis_backends': [{'type': 'LocalVisBackend'}],
        }
        config.visualizer = {**visualizer, 'save_dir': folder}


if __name__ == '__main__':
    sys.exit(main())
