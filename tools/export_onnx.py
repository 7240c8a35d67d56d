"""Export a slim or dense segmentor or classifier to ONNX, and compare it with onnxruntime.

The model takes preprocessed images (its metadata has mean, std and channel order) and gives logits, a
segmentor at the size of the images. Exits with 1, and writes nothing, when onnxruntime does not agree with the model.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mmprune_gates import cli
from mmprune_gates.engine.onnx_export import export_onnx


@cli.reports_errors
def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = cli.config_parser(__doc__)
    parser.add_argument('checkpoint', help='its weights: slim.pth, or a checkpoint of a dense model')
    parser.add_argument('out', type=Path, metavar='OUT.onnx', help='file to write')
    parser.add_argument('--argmax', action='store_true', help='give a label map instead of logits; segmentors only')
    parser.add_argument('--dynamic-size', action='store_true', help='let height and width vary as well')
    parser.add_argument('--shape', type=int, nargs=3, metavar=('C', 'H', 'W'), help="images; default: the config's")
    parser.add_argument('--batch', type=int, metavar='N', help='images at a time; default: any number')
    args = parser.parse_args(argv)
    config = cli.load_config(args.config, args.cfg_options)
    report = export_onnx(config, args.checkpoint, args.out, args.shape, args.argmax, args.dynamic_size, args.batch)
    print('\n'.join(lines(report, args.out)))
    return 0


def lines(report: dict, out: Path) -> list[str]:
    """The report of an export as lines."""
    shape = ' x '.join(map(str, report['input']['shape']))
    error = report['relative_error']
    told = '' if error is None else f'relative error {error:.1e}, '
    return [
        f'{report["input"]["name"]} ({shape}, float32) -> {report["output"]}',
        f'opset {report["opset"]}, by {report["exporter"]}; simplified {report["simplified"]}; '
        f'{report["norms_left"]} batch norms left',
        f'{report["compared_with"]} against eager on {len(report["compared_shapes"])} random batches: {told}'
        f'{report["equal_labels"]:.2%} of the labels equal',
        f'{out} written ({report["bytes"] / 2**20:.1f} MiB)',
    ]


if __name__ == '__main__':
    sys.exit(main())
