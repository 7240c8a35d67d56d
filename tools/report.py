"""One page about a pruning run, finished or killed: gates, MACs, loss, remaining widths of all layers, predictions.

Writes OUT/index.html, which needs no other file, and its pictures as PNGs beside it. Sections without data are left
out, with a line that says why.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mmprune_gates import cli  # cures come before the imports below

# isort: split
from mmprune_gates.report import read_run, write_report


@cli.reports_errors
def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = cli.plain_parser(__doc__)
    parser.add_argument('work_dir', type=Path, help='work directory of the run')
    parser.add_argument('--slim', type=Path, metavar='DIR', help='what tools/slim.py wrote; default WORK_DIR/slim')
    parser.add_argument('--out', type=Path, metavar='DIR', help='folder to write to; default WORK_DIR/report')
    parser.add_argument('--images', type=int, default=4, help='images to show of a segmentor')
    parser.add_argument('--samples', type=int, default=1000, help='images to classify at most')
    args = parser.parse_args(argv)
    if min(args.images, args.samples) < 1:
        parser.error('--images and --samples must be at least 1')
    run = read_run(args.work_dir, args.slim)
    out = args.out or args.work_dir / 'report'
    cli.check_writable(out, is_folder=True)
    page, missing = write_report(run, out, args.images, args.samples)
    for title, reason in missing.items():
        print(f'left out: {title}: {reason}')
    print(f'{page} written')
    return 0


if __name__ == '__main__':
    sys.exit(main())
