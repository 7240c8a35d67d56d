"""Fold and slim a gated checkpoint: writes OUT_DIR/slim.py, slim.pth and slim.json.

Exits with 1, and writes nothing, when the slim model's output is not that of the gated one.
"""

from __future__ import annotations

import sys

from mmprune_gates import cli
from mmprune_gates.engine.export import export_slim


@cli.reports_errors
def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = cli.config_parser(__doc__)
    parser.add_argument('checkpoint', help='a checkpoint of the gated run')
    parser.add_argument('out_dir', help='folder for the slim model')
    args = parser.parse_args(argv)
    report = export_slim(cli.load_config(args), args.checkpoint, args.out_dir)
    rows = {'MACs': 'macs', 'parameters': 'params', 'channels': 'channels', 'blocks': 'blocks'}
    print(f'{"":12}{"before":>14}{"after":>14}{"kept":>8}')
    for name, row in ((name, report[key]) for name, key in rows.items()):
        if row['before']:  # not every run has gates on blocks, or on channels
            print(f'{name:12}{row["before"]:14,}{row["after"]:14,}{row["after"] / row["before"]:8.1%}')
    print(f'parity error {report["parity_error"]:.1e}; written to {args.out_dir}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
