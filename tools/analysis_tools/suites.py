r"""Pages of measurements: what gates cost in a training step, what slim models gain, how long the channel graph takes.

Every cell of a page writes one JSON file below WORK_DIR, so that an interrupted run continues. A page consists of JSON,
Markdown and a picture. On a CPU all is measured on one thread, in turn with what it is compared with; times are
processor time.

Example::

    python tools/analysis_tools/suites.py step slim graph --work-dir work_dirs/suites
    python tools/analysis_tools/suites.py step slim graph --quick
    python tools/analysis_tools/suites.py step slim --gpu
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from mmprune_gates import cli  # cures come before the imports below

# isort: split
import suite_graph
import suite_slim
import suite_step
import torch
from mmengine.logging import MMLogger
from suite_cells import FULL, GPU, QUICK, Cell, Page, carry_out, write_page

PAGES = {page.name: page for page in (suite_step.PAGE, suite_slim.PAGE, suite_graph.PAGE)}


def make(page: Page, name: str, cells: Sequence[Cell], work_dir: Path, out: Path) -> None:
    """Measure the cells of a page that are missing, then write the page."""
    torch.set_num_threads(1)
    MMLogger.get_instance('suites', log_level='ERROR')  # without mmengine's log
    for cell in cells:
        carry_out(cell, work_dir / name)
    write_page(page, name, cells, work_dir / name, out)


@cli.reports_errors
def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = cli.plain_parser(__doc__)
    parser.add_argument('pages', nargs='+', choices=PAGES)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/suites'))
    parser.add_argument('--out', type=Path, help='folder of the pages; default WORK_DIR')
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument('--quick', action='store_const', const=QUICK, dest='size', help='few cells, small and short')
    sizes.add_argument('--gpu', action='store_const', const=GPU, dest='size', help='DeepLabV3+-R50 on one GPU')
    parser.set_defaults(size=FULL)
    parser.add_argument('--so-far', action='store_true', help='measure nothing, write the pages of what is there')
    args = parser.parse_args(argv)
    out = args.out or args.work_dir
    cli.check_writable(out, is_folder=True)
    if args.size == GPU and not args.so_far and not torch.cuda.is_available():
        raise ValueError('--gpu: no GPU is available')
    cells = {name: PAGES[name].cells(args.size) for name in args.pages}
    for name, own in cells.items():
        full_name = name if args.size == FULL else f'{name}_{args.size}'
        if args.so_far:
            write_page(PAGES[name], full_name, own, args.work_dir / full_name, out)
        else:
            make(PAGES[name], full_name, own, args.work_dir, out)
    return 0


if __name__ == '__main__':
    sys.exit(main())
