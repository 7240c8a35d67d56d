"""The table of the configs for real data: what each prunes, MACs before and after, and the source of its target.

    python tools/dev/recipes.py                              # print the page
    python tools/dev/recipes.py --write configs/README.md    # and write it

Every model is built at its stated input size, without pretrained weights, and traced; that takes some minutes.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from zoo_table import table

from mmprune_gates import cli

# isort: split
from mmengine.config import Config

from mmprune_gates.channels import ChannelGraph
from mmprune_gates.engine.coverage import model_of_config
from mmprune_gates.engine.datasets import leaves
from mmprune_gates.engine.model_config import stock_model

CONFIGS = Path(__file__).parents[2] / 'configs'
METHODS = dict(gdp='GDP', gbn='Gate Decorator', dense='dense start')
DATA = {
    'data/sbd/dataset': 'VOC 2011 + SBD',
    'data/VOCdevkit/VOC2012': 'VOC 2012 + aug',
    'data/cifar10': 'CIFAR-10',
    'data/cifar100': 'CIFAR-100',
    'data/CUB_200_2011': 'CUB-200-2011',
    'data/imagenet': 'ImageNet-1k',
    'data/cityscapes': 'Cityscapes',
    'data/ade/ADEChallengeData2016': 'ADE20K',
}
OURS = "this project's choice"
TARGETS = {  # where a target is not this project's choice
    'gdp_deeplabv3plus_voc': 'GDP, headline (more than 60 % saved)',
    'gdp_deeplabv3plus_voc_gradient': 'GDP, headline (more than 60 % saved)',
    'gbn_resnet56_cifar10': "Gate Decorator, authors' log (70 % saved)",
    'gbn_vgg16_cifar10': "Gate Decorator, authors' log (90 % saved)",
    'gbn_vgg16_cifar100': 'Gate Decorator, article (a quarter is kept, of VGG-16-M)',
    'gbn_resnet50_imagenet': 'Gate Decorator, article (40 % saved)',
}
HEADER = ('config', 'base model (inherited config)', 'data', 'method', 'target')
COST = ('input', 'GMACs before', 'after, at most', 'prunable')
SOURCE = ('source of the target',)
INTRO = """\
# Configs

`gdp_*` prunes while it trains (GDP), `gbn_*` prunes a dense model by Tick-Tock (Gate Decorator), `dense_*` is
the dense start of those whose `load_from` names its work folder. `demo/` runs on data that this repository
draws (`make demo`). This page is written by `python tools/dev/recipes.py --write configs/README.md`.

```
python tools/train.py CONFIG
python tools/slim.py CONFIG work_dirs/NAME_OF_CONFIG/CHECKPOINT.pth OUT_DIR
```

A test trains each of them, variants with another target apart, for a step on a tiny data set of the real
format, at smaller crops and some with fewer layers or channels (`tests/test_recipes.py`). None has been
trained on the real data where this was written: no accuracy is claimed.

- *Base model*: the stock config at the end of the inheritance. If the config's name mentions another
  network, it replaces the stock one.
- *Target*: kept MACs / original MACs. *GMACs* are those of inference at the input size, batch 1, multiply-add
  = 1; *after* is the most that the target allows.
- *Prunable*: MACs that go if every free channel goes, of all. SegFormer's first stage
  has one head, whose width stays.
- *Source of the target*: "{ours}" where the papers have none, or theirs is not known to us. Schedules, rates
  and lengths of GDP are all this project's choice. Of Gate Decorator's settings Tocks of 10 epochs, one after
  10 Ticks, and the learning rates are the paper's (but for AdamW, and for FCN without norm, where they are
  ours), the penalty is that of the authors' code, and the fraction is the paper's for VGG, FCN and the
  ResNets on CIFAR and ImageNet (VGG on CIFAR: the authors' run). What else is ours is said in each config.
  What the M of VGG-16-M changes is not known to us.

"""


@cli.reports_errors
def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = cli.plain_parser(__doc__)
    parser.add_argument('--write', type=Path, metavar='FILE', help='write the page there, too')
    args = parser.parse_args(argv)
    text = page(rows(recipes(), Graphs()))
    print(text, end='')
    if args.write:
        cli.write_text(args.write, text)
    return 0


def recipes() -> list[Path]:
    """Paths of all configs for real data."""
    return [path for path in sorted(CONFIGS.rglob('*.py')) if path.parent.name != 'demo']


class Graphs:
    """Graphs of gated configs, each model traced once."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[ChannelGraph, Sequence[int]]] = {}

    def __call__(self, config: Config) -> tuple[ChannelGraph, Sequence[int]]:
        """The channel graph and input shape of a gated config."""
        model = config.model.to_dict()
        bare = {key: value for key, value in stock_model(model).items() if key != 'pretrained'}
        bare['backbone'] = {key: value for key, value in bare['backbone'].items() if key != 'init_cfg'}
        key = repr((bare, model.get('input_shape')))
        if key not in self.known:
            _, *self.known[key] = model_of_config(config)
        return self.known[key]


def rows(paths: Iterable[Path], graphs: Graphs) -> Iterator[list[str]]:
    """A row of cells for each config."""
    for path in paths:
        config = Config.fromfile(path)
        cost = ['–'] * len(COST)
        if method(path) != 'dense':
            cost = cost_cells(*graphs(config), target(config))
        yield [*identity(path, config), *cost, source(path)]


def identity(path: Path, config: Config) -> list[str]:
    """Cells that need no graph: config, base model, data, method, target."""
    share = '–' if method(path) == 'dense' else f'{target(config):g}'
    name = path.relative_to(CONFIGS).with_suffix('').as_posix()
    return [f'`{name}`', base_model(path), data(config), METHODS[method(path)], share]


def cost_cells(graph: ChannelGraph, shape: Sequence[int], share: float) -> list[str]:
    """Input size, GMACs before and after, prunable share."""
    total = graph.macs()
    size = '×'.join(map(str, shape[1:]))
    return [size, f'{total / 1e9:.3f}', f'{share * total / 1e9:.3f}', f'{graph.prunable_macs() / total:.1%}']


def method(path: Path) -> str:
    """``gdp``, ``gbn`` or ``dense``."""
    return path.stem.partition('_')[0]


def target(config: Config) -> float:
    """Share of the MACs that a gated config keeps."""
    return config.custom_hooks[0].target_macs


def source(path: Path) -> str:
    """The source of the target."""
    return '–' if method(path) == 'dense' else TARGETS.get(path.stem, OURS)


def data(config: Config) -> str:
    """Name of the data set that a config trains on."""
    (root,) = {dataset.data_root.rstrip('/') for _, dataset in leaves('', config.train_dataloader.dataset)}
    return DATA[root]


def base_model(path: Path) -> str:
    """The stock config at the end of a config's inheritance; of several bases, the one with the model."""
    assigned = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Assign)]
    (value,) = (node.value for node in assigned if ast.unparse(node.targets[0]) == '_base_')
    bases = ast.literal_eval(value)
    first = bases if isinstance(bases, str) else bases[0]
    return first.removesuffix('.py') if '::' in first else base_model(path.parent / first)


def page(cells: Iterable[list[str]]) -> str:
    """The whole page as Markdown."""
    return INTRO.format(ours=OURS) + '\n'.join(table(HEADER + COST + SOURCE, cells)) + '\n'


if __name__ == '__main__':
    sys.exit(main())
