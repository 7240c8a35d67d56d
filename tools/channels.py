"""Show which channels of a model can be pruned: every convolution and linear layer, and why not where not.

MACs are multiply-accumulates of inference at batch 1; layers that only train have none. A layer's outputs and inputs
belong to groups of channels that stay or go together.
"""

from __future__ import annotations

import sys
from itertools import groupby

import cli

from mmprune_gates.engine.coverage import coverage, graph_of_config


@cli.reports_errors
def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = cli.config_parser(__doc__)
    parser.add_argument('--json', metavar='FILE', help='write everything there, too')
    parser.add_argument('--shape', type=int, nargs=2, metavar=('H', 'W'), help='input size, where the config has none')
    args = parser.parse_args(argv)
    config = cli.load_config(args)
    graph, shape = graph_of_config(config, args.shape and (3, *args.shape))
    report = {'config': args.config, 'input_shape': shape, **coverage(graph)}
    print('\n'.join(table(report)))
    if args.json:
        cli.write_json(args.json, report)
    return 0


def table(report: dict) -> list[str]:
    """The report as lines: one part of the model after the other, then the totals."""
    sizes = {group['name']: group['size'] for group in report['groups']}
    lines = []
    for part, layers in groupby(report['layers'], lambda layer: layer['name'].partition('.')[0]):
        layers = list(layers)
        width = max(len(layer['name']) for layer in layers) - len(part) + 1
        macs = sum(layer['macs'] for layer in layers)
        lines.append(f'{part}  {macs / 1e9:.3f} GMACs, {macs / max(report["macs"], 1):.1%}')
        for layer in layers:
            ways = ('out',) if layer['kind'] == 'depthwise conv' else ('out', 'in')
            sides = ' <- '.join(side(layer, way, sizes) for way in ways)
            name = layer['name'].removeprefix(f'{part}.')
            lines.append(
                f'  {name:{width}} {layer["kind"]:14} {layer["macs"] / 1e6:9.1f}M {layer["share"]:6.1%}  {sides}'
            )
    free = [group for group in report['groups'] if group['frozen'] is None]
    blocks = report['blocks']
    share = sum(block['macs'] for block in blocks) / max(report['macs'], 1)
    whole = [layer['name'] for layer in report['layers'] if not layer['prunable']]
    return [
        *lines,
        '',
        f'input {tuple(report["input_shape"])}: {report["macs"] / 1e9:.3f} GMACs, '
        f'{report["prunable_macs"] / 1e9:.3f} of them prunable ({report["prunable_share"]:.2%})',
        f'{len(report["layers"])} layers, {len(report["layers"]) - len(whole)} prunable; {len(free)} groups '
        f'of {sum(group["size"] for group in free)} channels that can be pruned',
        *([f'{len(blocks)} residual blocks that can go as a whole, {share:.1%} of the MACs'] if blocks else []),
        *([f'not prunable: {", ".join(whole)}'] if whole else []),
    ]


def side(layer: dict, way: str, sizes: dict[str, int]) -> str:
    """Groups of a layer's outputs or inputs with their sizes, or why they are frozen."""
    if layer[f'{way}_frozen'] is not None:
        return f'[frozen: {layer[f"{way}_frozen"]}]'
    first, *more = (f'{name} ({sizes[name]})' for name in layer[f'{way}_groups'])
    return f'{first} + {len(more)} more' if more else first


if __name__ == '__main__':
    sys.exit(main())
