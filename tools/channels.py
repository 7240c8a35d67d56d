"""Show every convolution and linear layer of a model: which channels can be pruned, and why others cannot.

MACs are multiply-accumulates of inference at batch 1; layers used only in training have none. The outputs and inputs of
a layer belong to channel groups; layers that share a group lose the same channels.
"""

from __future__ import annotations

import sys

from mmprune_gates import cli
from mmprune_gates.checks import IMAGE, checked
from mmprune_gates.engine.coverage import coverage, model_of_config


@cli.reports_errors
def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = cli.config_parser(__doc__)
    parser.add_argument('--json', metavar='FILE', help='write everything there, too')
    parser.add_argument('--shape', type=int, nargs=2, metavar=('H', 'W'), help='input size, where the config has none')
    args = parser.parse_args(argv)
    config = cli.load_config(args.config, args.cfg_options)
    if args.json:
        cli.check_writable(args.json)
    shape = args.shape and checked('--shape', (3, *args.shape), IMAGE)
    _, graph, shape = model_of_config(config, shape)
    report = {'config': args.config, 'input_shape': list(shape), **coverage(graph)}
    print('\n'.join(table(report)))
    if args.json:
        cli.write_json(args.json, report)
    return 0


def table(report: dict) -> list[str]:
    """The report as lines: a tree of modules, then the totals."""
    sizes = {group['name']: group['size'] for group in report['groups']}
    rows = branch([(layer['name'].split('.'), layer) for layer in report['layers']], 0)
    width = max((len(name) for name, *_ in rows), default=0)
    lines = [
        f'{name:{width}} {macs / 1e6:10.1f}M {share(macs, report)}  {told(layer, sizes)}' for name, macs, layer in rows
    ]
    free = [group for group in report['groups'] if group['frozen'] is None]
    number, part = len(report['blocks']), share(report['block_macs'], report).strip()
    blocks = [f'{number} residual blocks that can go as a whole, with {part} of the MACs']
    wide = [f'{len(report["full_width"])} modules compute across channels and keep their full width']
    whole = [layer['name'] for layer in report['layers'] if not layer['prunable']]
    return [
        *(line.rstrip() for line in lines),
        '',
        f'input {tuple(report["input_shape"])}: {report["macs"] / 1e9:.3f} GMACs, '
        f'{report["prunable_macs"] / 1e9:.3f} of them prunable ({report["prunable_share"]:.2%})',
        f'{len(report["layers"])} layers, {len(report["layers"]) - len(whole)} prunable; {len(free)} groups '
        f'of {sum(group["size"] for group in free)} channels that can be pruned',
        *(blocks if number else []),
        *(wide if report['full_width'] else []),
        *([f'not prunable: {", ".join(whole)}'] if whole else []),
    ]


def branch(layers: list[tuple[list[str], dict]], depth: int) -> list[tuple[str, int, dict | None]]:
    """Rows of a tree: (indented name, MACs, layer or None for a module that holds several).

    Args:
        layers: The remaining path of each layer below this branch, and the layer.
        depth: How far to indent.
    """
    parts: dict[str, list] = {}
    for path, layer in layers:
        parts.setdefault(path[0], []).append((path, layer))
    rows = []
    for name, inside in parts.items():
        indent = '  ' * depth
        if len(inside) == 1:
            rows.append((f'{indent}{".".join(inside[0][0])}', inside[0][1]['macs'], inside[0][1]))
            continue
        while all(len(path) > 1 and path[1] == inside[0][0][1] for path, _ in inside):  # a module with a single child
            name, inside = f'{name}.{inside[0][0][1]}', [(path[1:], layer) for path, layer in inside]
        rows.append((f'{indent}{name}', sum(layer['macs'] for _, layer in inside), None))
        rows += branch([(path[1:] or ['itself'], layer) for path, layer in inside], depth + 1)
    return rows


def share(macs: int, report: dict) -> str:
    """Share of all MACs."""
    return f'{macs / max(report["macs"], 1):6.1%}'


def told(layer: dict | None, sizes: dict[str, int]) -> str:
    """The kind of a layer, and the groups that it makes and reads."""
    if layer is None:
        return ''
    ways = ('out',) if layer['kind'] == 'depthwise conv' else ('out', 'in')
    return f'{layer["kind"]:14} ' + ' <- '.join(side(layer, way, sizes) for way in ways)


def side(layer: dict, way: str, sizes: dict[str, int]) -> str:
    """Groups of a layer's outputs or inputs with their sizes, or why they are frozen."""
    if layer[f'{way}_frozen'] is not None:
        return f'[frozen: {layer[f"{way}_frozen"]}]'
    first, *more = (f'{name} ({sizes[name]})' for name in layer[f'{way}_groups'])
    return f'{first} + {len(more)} more' if more else first


if __name__ == '__main__':
    sys.exit(main())
