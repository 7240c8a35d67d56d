"""The command ``mmprune-gates``: runs a tool of this package by the name of its file, from any folder."""

from __future__ import annotations

import ast
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

PROGRAM = 'mmprune-gates'
TOOLS = Path(__file__).parents[1].joinpath('.mim', 'tools').resolve()  # a link to tools/ in a checkout
ROOMS = ('.', 'analysis_tools', 'dataset_converters')  # folders of TOOLS with files that users run
RUNS = "if __name__ == '__main__':"  # files without this line only help the others


def main(argv: Sequence[str] | None = None) -> int:
    """Run a tool, or list all tools.

    Args:
        argv: The tool's name and its arguments; None: those of this process.

    Returns:
        0, or 2 if there is no such tool. A tool that ends by ``sys.exit`` ends this function with its own code.
    """
    words = sys.argv[1:] if argv is None else argv
    tools = find_tools()
    if not words or words[0] in ('-h', '--help'):
        print(listing(tools))
        return 0
    name, *arguments = words
    if name not in tools:
        there = ', '.join(tools) or f'none in {TOOLS}; install the package again'
        print(f'{PROGRAM}: error: there is no tool {name!r}, only {there}', file=sys.stderr)
        return 2
    run_as_main(tools[name], arguments)
    return 0


def find_tools() -> dict[str, Path]:
    """Name -> file of every tool."""
    tools = {}
    for room in ROOMS:
        files = (TOOLS / room).glob('*.py')
        for file in sorted(files):
            if RUNS in file.read_text(encoding='utf-8'):
                tools[file.stem] = file
    return tools


def listing(tools: dict[str, Path]) -> str:
    """The usage, with a line for each tool: its name and the first line of its docstring."""
    width = max(map(len, tools), default=0)
    lines = ''
    for name, file in tools.items():
        lines += f'  {name.ljust(width)}  {first_line(file)}\n'
    return f'usage: {PROGRAM} TOOL [ARGS ...]\n\n{lines}\n{PROGRAM} TOOL --help says more.'


def first_line(file: Path) -> str:
    """First line of a file's docstring."""
    tree = ast.parse(file.read_text(encoding='utf-8'))
    docstring = ast.get_docstring(tree) or ''
    return docstring.partition('\n')[0]


def run_as_main(file: Path, arguments: Sequence[str]) -> None:
    """Run a file as ``__main__`` in this process, as ``python FILE ARGUMENTS`` does.

    Args:
        file: The file; it can import its neighbours.
        arguments: Its arguments.
    """
    sys.argv[1:] = arguments
    sys.path[0] = str(file.parent)
    runpy.run_path(str(file), run_name='__main__')


if __name__ == '__main__':
    sys.exit(main())
