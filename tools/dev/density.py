"""How much there is to understand: AST nodes and code lines of each folder of the package, docstrings not counted.

    python tools/dev/density.py [FOLDER] [--check]

A node is an expression or a statement; a code line is one that holds part of a statement, outside docstrings. Also the
nested comprehensions per 100 code lines, and the longest function. Exit code 1 where FOLDER has no Python files; with
--check also where one of its folders is above this project's limits.
"""

from __future__ import annotations

import argparse
import ast
from collections import defaultdict
from pathlib import Path

LIMITS = {'per line': 6.0, 'nested/100': 0.3, 'longest': 40}
PACKAGE = Path(__file__).parents[2] / 'mmprune_gates'
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def docstrings(tree: ast.Module) -> set[ast.stmt]:
    """The statements that are docstrings."""
    found = set()
    for node in ast.walk(tree):
        body = getattr(node, 'body', None)
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) and body and isinstance(body[0], ast.Expr):
            if isinstance(body[0].value, ast.Constant) and isinstance(body[0].value.value, str):
                found.add(body[0])
    return found


def measure(path: Path) -> dict[str, int]:
    """Nodes, lines, nested comprehensions and the longest function of a file."""
    tree = ast.parse(path.read_text())
    left_out = {inner for statement in docstrings(tree) for inner in ast.walk(statement)}
    nodes = [node for node in ast.walk(tree) if isinstance(node, (ast.expr, ast.stmt)) and node not in left_out]
    lines = {node.lineno for node in nodes}
    lines |= {node.end_lineno for node in nodes}
    nested = sum(
        isinstance(node, COMPREHENSIONS) and any(isinstance(n, COMPREHENSIONS) for n in ast.walk(node) if n is not node)
        for node in nodes
    )
    longest = max((node.end_lineno - node.lineno + 1 for node in nodes if isinstance(node, FUNCTIONS)), default=0)
    return {'nodes': len(nodes), 'lines': len(lines), 'nested': nested, 'longest': longest}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', nargs='?', type=Path, default=PACKAGE, help='folder of a package; default ours')
    parser.add_argument('--check', action='store_true', help='fail above the limits')
    args = parser.parse_args()
    root = args.folder
    paths = sorted(root.rglob('*.py'))
    if not paths:
        raise SystemExit(f'density.py: error: {root} is no folder with Python files')
    rows: dict[str, list] = defaultdict(list)
    for path in paths:
        rows[path.relative_to(root).parts[0] if path.parent != root else '.'].append(measure(path))
    rows['all'] = [row for own in list(rows.values()) for row in own]
    print(f'{"":12}{"nodes":>8}{"lines":>8}{"per line":>10}{"nested/100":>12}{"longest":>9}')
    above = []
    for name, own in rows.items():
        nodes, lines, nested = (sum(row[key] for row in own) for key in ('nodes', 'lines', 'nested'))
        counted = max(1, lines)  # a folder of empty files has none
        found = {
            'per line': nodes / counted,
            'nested/100': 100 * nested / counted,
            'longest': max(row['longest'] for row in own),
        }
        print(f'{name:12}{nodes:8}{lines:8}{found["per line"]:10.2f}{found["nested/100"]:12.2f}{found["longest"]:9}')
        for key, most in LIMITS.items():
            if found[key] > most:
                above.append(f'{name}: {key} {found[key]:.4g} (at most {most})')
    if args.check and above:
        raise SystemExit(f'density.py: error: {"; ".join(above)}')


if __name__ == '__main__':
    main()
