"""The main workflow on generated data: train dense, prune with GDP, slim, test, compare.

Writes ``summary.json`` and ``summary.png`` to the work directory. The dense figure is of a model trained exactly
as long as the pruned one: both continue from the same start, one with gates and one without.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from mmprune_gates import cli  # cures come before the imports below

# isort: split
from demo_picture import draw_summary
from mmengine.config import Config
from rich.console import Console
from rich.table import Table

from mmprune_gates.budget import Schedule
from mmprune_gates.cli.jobs import Jobs

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs' / 'demo'
START = CONFIGS / 'dense_deeplabv3plus_scenes.py'
DENSE = CONFIGS / 'dense_continued_deeplabv3plus_scenes.py'
GDP = CONFIGS / 'gdp_deeplabv3plus_scenes.py'


class Demo(Jobs):
    """One run of the demo in one work directory.

    Args:
        work_dir: Folder for all output.
        data: Folder of the data set.
        seed: Seed of data order and initial weights.
        options: Further ``key=value`` overrides of all configs.
        pairs: Number of steps of each kind, timed in turn.
    """

    def __init__(self, work_dir: Path, data: Path, seed: int, options: list[str], pairs: int) -> None:
        super().__init__(work_dir, ROOT / 'tools')
        self.pairs = pairs
        self.data_root = data / 'VOC2012'
        roots = [f'{kind}_dataloader.dataset.data_root={self.data_root}' for kind in ('train', 'val', 'test')]
        self.options = [*roots, f'randomness.seed={seed}', *options]
        self.dense, self.gdp = work_dir / 'dense' / DENSE.name, work_dir / 'gdp' / GDP.name  # with all options

    def train_all(self, jobs: dict[str, tuple[Path, list[str]]]) -> None:
        """Train several configs side by side.

        Args:
            jobs: Name of the sub-folder -> (config, overrides).
        """
        self.train({name: [config, '--cfg-options', *self.options, *more] for name, (config, more) in jobs.items()})

    def miou(self, name: str, config: Path, checkpoint: Path) -> float:
        """mIoU on the validation images, by ``tools/test.py``."""
        out = self.work_dir / f'test_{name}.json'
        self.run(f'test_{name}', 'test.py', config, checkpoint, '--out-json', out, '--work-dir', self.work_dir / 'test',
                 '--cfg-options', *self.options)  # fmt: skip
        return cli.read_json(out)['mIoU']

    def step_times(self) -> dict[str, float]:
        """Time of a training step with gates, and after channels have left, relative to one of the dense model."""
        out = self.work_dir / 'step.json'
        self.run('step', 'analysis_tools/benchmark.py', self.gdp, '--shrunk', self.last('gdp'), '--batch', 8,
                 '--pairs', self.pairs, '--json', out)  # fmt: skip
        report = cli.read_json(out)
        return {'gated': report['time_ratio']['median'], 'shrunk': report['shrunk_time_ratio']['median']}


def summarise(demo: Demo, target: float) -> dict:
    """Test the three models, measure latency, and gather the figures of ``summary.json``."""
    slim = demo.work_dir / 'slim'
    report = cli.read_json(slim / 'slim.json')
    history = [json.loads(line) for line in (demo.work_dir / 'gdp' / 'gates.jsonl').read_text().splitlines()]
    last = history[-1]
    half = len(last['histogram']) // 2
    out = demo.work_dir / 'latency.json'
    demo.run('latency', 'analysis_tools/latency.py', demo.dense, slim / 'slim.py', '--backend', 'both',
             '--json', out)  # fmt: skip
    latency = cli.read_json(out)
    step = demo.step_times()
    settle = Config.fromfile(demo.gdp).custom_hooks[0].get('settle', Schedule.settle)
    return {
        'miou_dense': demo.miou('dense', DENSE, demo.last('dense')),
        'miou_gated': demo.miou('gated', GDP, demo.last('gdp')),
        'miou_slim': demo.miou('slim', slim / 'slim.py', slim / 'slim.pth'),
        'macs_dense': report['macs']['before'],
        'macs_slim': report['macs']['after'],
        'macs_removed': report['macs']['removed'],
        'target_removed': round(1 - target, 6),
        'params_dense': report['params']['before'],
        'params_slim': report['params']['after'],
        'latency_ratio': latency['torch']['ratio'],
        'latency_ratio_quartiles': latency['torch']['ratio_quartiles'],
        'latency_ratio_onnx': latency['onnxruntime']['ratio'],
        'latency_ratio_onnx_quartiles': latency['onnxruntime']['ratio_quartiles'],
        'train_time_ratio': settle * step['gated'] + (1 - settle) * step['shrunk'],
        'step_time_ratios': step,
        'parity_error': report['parity_error'],
        'gates_zero': last['closed'],
        'gates_open': sum(last['histogram'][half:]),
        'gates_between': sum(last['histogram'][:half]),
    }


def show(console: Console, summary: dict) -> None:
    """Print the table of a run."""
    table = Table(title='DeepLabV3+ on the embedded data')
    for column in ('', 'dense', 'slim'):
        table.add_column(column, justify='right' if column else 'left')
    table.add_row('mIoU', f'{summary["miou_dense"]:.2f}', f'{summary["miou_slim"]:.2f}')
    for key, name in (('macs', 'MACs'), ('params', 'parameters')):
        dense, slim = summary[f'{key}_dense'], summary[f'{key}_slim']
        table.add_row(name, f'{dense / 1e6:.2f} M', f'{slim / 1e6:.2f} M ({slim / dense:.1%})')
    table.add_row('CPU latency', '1', f'1 / {summary["latency_ratio"]:.2f}')
    table.add_row('CPU latency in onnxruntime', '1', f'1 / {summary["latency_ratio_onnx"]:.2f}')
    table.add_row('training', '1', f'{summary["train_time_ratio"]:.2f}')
    console.print(table)
    console.print(
        f'gated mIoU {summary["miou_gated"]:.2f}; gates: {summary["gates_zero"]} exactly 0, '
        f'{summary["gates_open"]} open, {summary["gates_between"]} between; parity error {summary["parity_error"]:.1e}'
    )


def main() -> None:
    """Run the command line."""
    parser = cli.plain_parser(__doc__)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/demo'))
    parser.add_argument('--data', type=Path, default=Path('data/demo_scenes'), help='folder of the data set')
    parser.add_argument('--num-train', type=int, default=2000)
    parser.add_argument('--num-val', type=int, default=200)
    parser.add_argument('--size', type=int, nargs=2, default=(64, 96), metavar=('H', 'W'))
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--pairs', type=int, default=40, help='steps of each kind that are timed in turn')
    parser.add_argument('--cfg-options', nargs='+', default=[], help='overrides of all configs, key=value')
    args = parser.parse_args()
    begin = time.monotonic()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    demo = Demo(args.work_dir, args.data, args.seed, args.cfg_options, args.pairs)
    sizes = ['--num-train', args.num_train, '--num-val', args.num_val, '--size', *args.size]
    demo.run('data', 'dataset_converters/demo_data.py', args.data, *sizes)
    demo.train_all({'start': (START, [])})
    start = f'load_from={demo.last("start")}'
    demo.train_all({'dense': (DENSE, [start]), 'gdp': (GDP, [start])})
    demo.run('slim', 'slim.py', demo.gdp, demo.last('gdp'), args.work_dir / 'slim')
    hook = Config.fromfile(demo.gdp).custom_hooks[0]
    summary = summarise(demo, hook.target_macs)
    cli.write_json(args.work_dir / 'summary.json', summary)
    show(demo.console, summary)
    draw(demo, summary)
    minutes = (time.monotonic() - begin) / 60
    demo.console.print(f'{args.work_dir / "summary.json"} and summary.png written; {minutes:.1f} minutes')


def draw(demo: Demo, summary: dict) -> None:
    """Write ``summary.png``."""
    slim = demo.work_dir / 'slim'
    models = {
        f'dense {summary["miou_dense"]:.1f}': (str(DENSE), str(demo.last('dense'))),
        f'slim {summary["miou_slim"]:.1f}': (str(slim / 'slim.py'), str(slim / 'slim.pth')),
    }
    title = f'DeepLabV3+ pruned by GDP: {summary["macs_removed"]:.0%} of the MACs removed'
    draw_summary(demo.work_dir / 'summary.png', demo.work_dir / 'gdp', slim, models, demo.data_root, title)


if __name__ == '__main__':
    main()
