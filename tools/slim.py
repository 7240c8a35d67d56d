"""Fold and slim a gated checkpoint: writes OUT_DIR/slim.py, slim.pth and slim.json.

Exits with 1, and writes nothing, when the slim model's output is not that of the gated one.
"""

from __future__ import annotations

import argparse

import mmprune_gates  # noqa: F401  (cures come before mmengine's imports)
from mmengine.config import Config

from mmprune_gates.engine.export import export_slim


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of the gated run')
    parser.add_argument('checkpoint', help='a checkpoint of it')
    parser.add_argument('out_dir', help='folder for the slim model')
    args = parser.parse_args()
    report = export_slim(Config.fromfile(args.config), args.checkpoint, args.out_dir)
    macs, params, channels = report['macs'], report['params'], report['channels']
    print(f'{"":12}{"before":>14}{"after":>14}{"kept":>8}')
    for name, row in (('MACs', macs), ('parameters', params), ('channels', channels)):
        print(f'{name:12}{row["before"]:14,}{row["after"]:14,}{row["after"] / row["before"]:8.1%}')
    print(f'parity error {report["parity_error"]:.1e}; written to {args.out_dir}')


if __name__ == '__main__':
    main()
