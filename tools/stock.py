"""Run a tool that another package ships, with mmprune_gates imported first.

With full mmcv the tools of mmsegmentation and mmpretrain need no help: a config with
``custom_imports = dict(imports=['mmprune_gates'])`` is enough. Some of them (``analysis_tools/get_flops.py``)
import their models before they read the config, which fails on mmcv-lite or beside a mismatched torchvision;
and on the onedl packages ``_base_ = 'mmseg::...'`` is resolved before ``custom_imports``. Here the cures are applied
first.

Examples::

    python tools/stock.py mmseg:test.py CONFIG CHECKPOINT
    python tools/stock.py mmseg:analysis_tools/get_flops.py CONFIG --shape 512 512
    python tools/stock.py path/to/any_script.py ARGS
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

from mmprune_gates.cli.console import run_as_main  # imports mmprune_gates, and so its cures, too


def spec_of(package: str) -> ModuleSpec | None:
    """The import spec of a package; None if there is none, or the name is not valid."""
    try:
        return importlib.util.find_spec(package)
    except (ImportError, ValueError, AttributeError):
        return None


def find_tool(name: str) -> Path:
    """The file named by ``package:tool.py`` (relative to the package's ``.mim/tools``) or by a plain path."""
    package, colon, tool = name.partition(':')
    if not colon:
        path = Path(name)
    else:
        spec = spec_of(package)
        if spec is None or spec.origin is None:
            raise SystemExit(f'stock.py: package {package!r} of {name!r} is not installed')
        path = Path(spec.origin).parent / '.mim' / 'tools' / tool
    if path.is_file():
        return path
    there = sorted(str(file.relative_to(path.parent)) for file in path.parent.glob('*.py'))
    raise SystemExit(f'stock.py: no such tool: {path}\nscripts in that folder: {", ".join(there) or "none"}')


def main() -> None:
    """Replace this process's arguments by the tool's own and run it as ``__main__``."""
    parser = argparse.ArgumentParser(
        usage='%(prog)s [-h] PACKAGE:TOOL.py|SCRIPT.py [ARGS ...]',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('tool', help="a tool that a package ships, or a script; all that follows is the tool's own")
    ours = parser.parse_args(sys.argv[1:2])
    run_as_main(find_tool(ours.tool), sys.argv[2:])


if __name__ == '__main__':
    main()
