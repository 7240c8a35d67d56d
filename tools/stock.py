"""Run a tool that another package ships, with mmprune_gates imported first.

With full mmcv the tools of mmsegmentation and mmpretrain need no help: a config with
``custom_imports = dict(imports=['mmprune_gates'])`` is enough. Some of them (``analysis_tools/get_flops.py``)
import their models before they read the config, which fails on mmcv-lite or beside a mismatched torchvision;
and on the onedl packages ``_base_ = 'mmseg::...'`` is resolved before ``custom_imports``. Here the cures come
first.

Examples::

    python tools/stock.py mmseg:test.py CONFIG CHECKPOINT
    python tools/stock.py mmseg:analysis_tools/get_flops.py CONFIG --shape 512 512
    python tools/stock.py path/to/any_script.py ARGS
"""

from __future__ import annotations

import importlib.util
import runpy
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import mmprune_gates  # noqa: F401  (imported for its cures)

USAGE = 'usage: python tools/stock.py PACKAGE:TOOL.py|SCRIPT.py [ARGS ...]'


def spec_of(package: str) -> ModuleSpec | None:
    """Where a package is; None if there is none, or none can have that name."""
    try:
        return importlib.util.find_spec(package)
    except (ImportError, ValueError, AttributeError):
        return None


def find_tool(name: str) -> Path:
    """The file that ``package:tool.py`` (relative to the package's ``.mim/tools``) or a plain path names."""
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
    if len(sys.argv) < 2 or sys.argv[1] in ('-h', '--help'):
        raise SystemExit(f'{USAGE}\n\n{__doc__}')
    path = find_tool(sys.argv[1])
    sys.argv = [str(path), *sys.argv[2:]]
    sys.path[0] = str(path.parent)
    runpy.run_path(str(path), run_name='__main__')


if __name__ == '__main__':
    main()
