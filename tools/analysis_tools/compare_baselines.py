r"""Compare a pruned model with what the same training achieves without pruning, over several seeds.

START_CONFIG trains the dense start, PRUNE_CONFIG (a GatedModel) continues it. Every seed gives four models, all
trained for as long as both configs together:

    dense    the start, trained on without gates
    pruned   the start, trained on with gates, slimmed
    shrunk   all widths scaled by one number to the MACs of the pruned model, from scratch
    scratch  the pruned architecture, from scratch

The last two follow the recipe of START_CONFIG, its schedule stretched. Writes comparison.json, .md and .png to the work
directory, beside one folder per seed with every config that was run. Called again, it continues where it ended.

Example::

    python tools/analysis_tools/compare_baselines.py configs/demo/dense_resnet20_digits.py \
        configs/demo/gdp_resnet20_digits.py --seeds 0 1 2 --work-dir work_dirs/compare_digits
"""

from __future__ import annotations

import argparse
import sys
from fractions import Fraction
from functools import cached_property
from pathlib import Path

from mmprune_gates import cli  # cures come before the imports below

# isort: split
import baselines
from comparison_report import draw, figures_of, markdown, show
from mmengine.config import Config

from mmprune_gates.channels import ChannelGraph
from mmprune_gates.cli.jobs import Jobs
from mmprune_gates.engine.coverage import model_of_config
from mmprune_gates.engine.datasets import check_datasets
from mmprune_gates.engine.model_config import default_input_shape, model_config_of

TOOLS = Path(__file__).resolve().parents[1]
KINDS = ('dense', 'pruned', 'shrunk', 'scratch')


class Comparison(Jobs):
    """All runs of a comparison in one work directory; what is finished is not run again.

    Args:
        start: Config of the dense start.
        prune: Config of the gated run.
        seeds: The seeds; each gives four models.
        work_dir: Folder for all output.
        at_once: How many processes run at a time.

    Raises:
        ValueError: The configs do not belong together.
    """

    def __init__(self, start: Config, prune: Config, seeds: list[int], work_dir: Path, at_once: int) -> None:
        super().__init__(work_dir, TOOLS, paths=[Path(config.filename).absolute().parent for config in (start, prune)])
        baselines.check_pair(start, prune)
        self.start, self.prune, self.dense = start, prune, baselines.dense_config(prune)
        self.seeds, self.at_once = seeds, at_once
        self.lengths = [baselines.run_length(config)[0] for config in (start, prune)]
        self.input_shape = default_input_shape(model_config_of(prune))

    @cached_property
    def graph(self) -> ChannelGraph:
        """Channel graph of the dense model."""
        _, graph, _ = model_of_config(self.dense, self.input_shape)
        return graph

    def run_all(self) -> dict[int, dict[str, dict]]:
        """Train, slim and test whatever is missing.

        Returns:
            Seed -> kind -> result: ``macs``, and the metrics of ``tools/test.py``.
        """
        self.train_all('start')
        self.train_all('dense', 'gated')
        self.for_all(self.slim, [seed for seed in self.seeds if not (self.slim_dir(seed) / 'slim.json').is_file()])
        self.train_all('shrunk', 'scratch')
        missing = [(seed, kind) for seed in self.seeds for kind in KINDS if not self.result(seed, kind).is_file()]
        self.for_all(lambda item: self.test(*item), missing)
        return {seed: {kind: cli.read_json(self.result(seed, kind)) for kind in KINDS} for seed in self.seeds}

    def train_all(self, *kinds: str) -> None:
        """Write the configs of some kinds for every seed, and train those that have not been."""
        jobs = {}
        for name, seed, kind in [(f'seed_{seed}/{kind}', seed, kind) for seed in self.seeds for kind in kinds]:
            path = self.work_dir / f'{name}.py'
            write_config(path, self.derive(seed, kind), self.trained(name))
            if not self.trained(name):
                jobs[name] = [path]
        if jobs:
            self.train(jobs, self.at_once)

    def derive(self, seed: int, kind: str) -> Config:
        """The config of one training."""
        if kind == 'start':
            return baselines.seeded(self.start, seed)
        if kind in ('dense', 'gated'):
            checkpoint = self.last(f'seed_{seed}/start').name
            config = self.dense if kind == 'dense' else self.prune
            return baselines.seeded(config, seed, f'{{{{ fileDirname }}}}/start/{checkpoint}')
        if kind == 'shrunk':
            model = baselines.shrunk_model(self.dense.model.to_dict(), self.width(seed)['share'], self.input_shape)
        else:
            model = Config.fromfile(self.slim_dir(seed) / 'slim.py').model.to_dict()
        factor = Fraction(sum(self.lengths), self.lengths[0])
        return baselines.seeded(baselines.from_scratch(self.start, model, factor), seed)

    def width(self, seed: int) -> dict:
        """Share of channels and MACs of the shrunk model; searched once."""
        path = self.work_dir / f'seed_{seed}' / 'shrunk_width.json'
        target = self.macs(seed)['after']
        if not path.is_file() or cli.read_json(path)['target'] != target:
            share, macs = baselines.choose_width(self.graph, target)
            cli.write_json(path, {'share': share, 'macs': macs, 'target': target})
        return cli.read_json(path)

    def slim(self, seed: int) -> None:
        """Slim the gated model of a seed."""
        name = f'seed_{seed}/gated'
        self.run(f'seed_{seed}/slim', 'slim.py', self.work_dir / f'{name}.py', self.last(name), self.slim_dir(seed))

    def test(self, seed: int, kind: str) -> None:
        """Test one model, and write its metrics and its MACs."""
        name = f'seed_{seed}/{kind}'
        pair = [self.slim_dir(seed) / file for file in ('slim.py', 'slim.pth')]
        if kind != 'pruned':
            pair = [self.work_dir / f'{name}.py', self.last(name)]
        metrics = self.work_dir / f'{name}_test.json'
        folder = self.work_dir / f'seed_{seed}' / 'test'
        self.run(f'{name}_test', 'test.py', *pair, '--work-dir', folder / kind, '--out-json', metrics)
        report = self.macs(seed)
        macs = {'dense': report['before'], 'shrunk': self.width(seed)['macs']}.get(kind, report['after'])
        cli.write_json(self.result(seed, kind), {'macs': macs, 'metrics': cli.read_json(metrics)})

    def macs(self, seed: int) -> dict:
        """MACs before and after slimming."""
        return cli.read_json(self.slim_dir(seed) / 'slim.json')['macs']

    def slim_dir(self, seed: int) -> Path:
        """Folder of the slim model."""
        return self.work_dir / f'seed_{seed}' / 'slim'

    def result(self, seed: int, kind: str) -> Path:
        """File of a finished model's figures."""
        return self.work_dir / f'seed_{seed}' / f'{kind}.json'

    def for_all(self, task, items: list) -> None:
        """Call a function for several items, some at a time."""
        self.side_by_side([lambda item=item: task(item) for item in items], self.at_once)


def write_config(path: Path, config: Config, in_use: bool) -> None:
    """Write a config completely or not at all.

    Raises:
        ValueError: A finished run used another one under this name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'partial_{path.name}')
    config.dump(partial)
    if in_use and (not path.is_file() or path.read_bytes() != partial.read_bytes()):
        raise ValueError(
            f'{path} was made from other configs or options, and its run is finished (compare it with {partial}): '
            f'choose another --work-dir, or remove {path.parent} to run this seed again'
        )
    partial.replace(path)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.plain_parser(__doc__)
    parser.add_argument('start_config', help='config of the dense start')
    parser.add_argument('prune_config', help='config of the gated run that goes on from it')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--work-dir', type=Path, required=True, help='folder for everything')
    parser.add_argument('--jobs', type=int, default=2, help='processes at a time, one CPU thread each')
    parser.add_argument('--metric', help='key of the metrics of tools/test.py; default mIoU or accuracy/top1')
    parser.add_argument('--title', help='title of the table and the picture; default: model and data')
    parser.add_argument(
        '--cfg-options', nargs='+', action=cli.Options, default={}, metavar='KEY=VALUE', help='override both configs'
    )
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error(f'--jobs must be at least 1, got {args.jobs}')
    if not all(0 <= seed < 2**32 for seed in args.seeds):
        parser.error(f'--seeds must be in [0, 2**32), got {args.seeds}')
    args.seeds = list(dict.fromkeys(args.seeds))
    return args


def load(path: str, options: dict) -> Config:
    """A config with overrides, after the checks that training and testing would otherwise make only later.

    Raises:
        ValueError: It cannot be read, one of our hooks refuses its arguments, or a data set is missing.
    """
    args = argparse.Namespace(config=path, cfg_options=options, work_dir=None, launcher='none', local_rank=0)
    check_datasets(cli.runner_config(args), ('train_dataloader', 'val_dataloader', 'test_dataloader'))
    return cli.load_config(path, options)


@cli.reports_errors
def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = arguments(argv)
    cli.check_writable(args.work_dir, is_folder=True)
    start, prune = (load(path, args.cfg_options) for path in (args.start_config, args.prune_config))
    comparison = Comparison(start, prune, args.seeds, args.work_dir, args.jobs)
    results = comparison.run_all()
    figures = figures_of(start, prune, results, args.metric, args.title)
    cli.write_json(args.work_dir / 'comparison.json', figures)
    cli.write_text(args.work_dir / 'comparison.md', markdown(figures))
    draw(args.work_dir / 'comparison.png', figures)
    show(comparison.console, figures)
    print(f'{args.work_dir / "comparison.json"}, .md and .png written')
    return 0


if __name__ == '__main__':
    sys.exit(main())
