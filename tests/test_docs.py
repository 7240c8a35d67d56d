"""What the documentation names is there: pages, sections, files, tests, options of tools, messages."""

import ast
import re
import runpy
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
LINK = re.compile(r'\]\(([^)\s]+)\)')
HEADING = re.compile(r'^#+ (.+)$', flags=re.M)
TEST = re.compile(r'`(tests/\w+\.py)(?:::(\w+))?`')
COMMAND = re.compile(r'(?<![\w/.])tools/[\w/]+\.py[^`|\n]*')
OPTION = re.compile(r'(?<![\w-])--[a-z][\w-]*')
PASSING_ON = 'tools/stock.py'  # its further arguments are another tool's
MESSAGE = re.compile(r'`([^`]+)`')
BY_NAME = pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(page):
    """The sections of a page as links name them."""
    titles = [re.sub(r'[^\w\- ]', '', title.lower()) for title in HEADING.findall(page.read_text())]
    return {title.replace(' ', '-') for title in titles}


@BY_NAME
def test_links_lead_somewhere(page):
    for link in LINK.findall(page.read_text()):
        if '://' in link:
            continue
        path, _, section = link.partition('#')
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not section or section in anchors(target), link


def test_the_index_leads_to_every_page():
    index = ROOT / 'docs' / 'index.md'
    linked = {(index.parent / link.partition('#')[0]).resolve() for link in LINK.findall(index.read_text())}
    assert set(PAGES[1:]) - {index} <= linked
    assert 'docs/index.md' in LINK.findall(PAGES[0].read_text())


@BY_NAME
def test_named_tests_are_there(page):
    for file, name in TEST.findall(page.read_text()):
        assert (f'def {name}(' if name else '') in (ROOT / file).read_text(), f'{file}::{name}'


def named_options():
    """(tool, option) pairs of all pages; a command ends with its line, lines that end with a backslash go on."""
    pairs = set()
    for page in PAGES:
        for command in COMMAND.findall(page.read_text().replace('\\\n', ' ')):
            command = command.partition('#')[0]
            tool = command.split()[0]
            if tool != PASSING_ON:
                pairs |= {(tool, option) for option in OPTION.findall(command)}
    return pairs


OPTIONS = named_options()


@pytest.mark.models
@pytest.mark.parametrize('tool', sorted({tool for tool, _ in OPTIONS}))
def test_named_options_are_those_of_the_tool(tool, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', [tool, '--help'])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(ROOT / tool), run_name='__main__')
    known = set(OPTION.findall(capsys.readouterr().out))
    named = {option for name, option in OPTIONS if name == tool}
    assert done.value.code == 0 and named <= known, named - known


@cache
def texts():
    """Every text in our code; a line break stands for what is filled in."""
    found = set()
    for file in [*(ROOT / 'mmprune_gates').rglob('*.py'), *(ROOT / 'tools').rglob('*.py')]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else '\n' for part in node.values]
                found.add(''.join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def patterns_to_look_up():
    """Message of docs/troubleshoot.md -> regular expression of the errors that it stands for."""
    page = (ROOT / 'docs' / 'troubleshoot.md').read_text()
    rows = [line.split('|')[1] for line in page.splitlines() if line.startswith('| `')]
    messages = [message for row in rows for message in MESSAGE.findall(row)]
    return {message: '.*'.join(re.escape(part) for part in message.split('...')) for message in messages}


def test_messages_to_look_up_are_those_of_the_code():
    patterns = patterns_to_look_up()
    assert len(patterns) > 100
    for message, pattern in patterns.items():
        assert any(re.search(pattern, text, flags=re.S) for text in texts()), message


# Messages for who writes code against the library, or that other messages contain.
INTERNAL = (
    'Parameters needs the model',
    'needs the model, whose weights it reads',
    'its results are used by',
    'a size depends on data',
    'torch.onnx.export has returned nothing',
    'takes tensors of three dimensions',
    'is_causal=True says what attn_mask is',
    'the times of ',  # in the message on a damaged table
    'cannot write',  # the system's reason follows
    'computes ',  # becomes a reason why channels stay
)


def raised():
    """The literal part of the message of every error that the package and the tools for users raise."""
    folders = [ROOT / 'mmprune_gates', ROOT / 'tools' / 'dataset_converters']
    files = [*(ROOT / 'tools').glob('*.py'), ROOT / 'tools' / 'analysis_tools' / 'benchmark.py']
    for folder in folders:
        files += folder.rglob('*.py')
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                yield f'{file.name}:{node.lineno}', literal(node.exc.args[0])


def literal(node):
    """The text of an expression, with a line break for each value."""
    if isinstance(node, ast.JoinedStr):
        return ''.join(map(literal, node.values))
    if isinstance(node, ast.BinOp):
        return literal(node.left) + literal(node.right)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else '\n'


def test_every_error_can_be_looked_up():
    known = [*patterns_to_look_up().values(), *map(re.escape, INTERNAL)]
    told = [(place, text) for place, text in raised() if re.search(r'[a-z]{3} ', text)]
    assert len(told) > 140
    unknown = [pair for pair in told if not any(re.search(pattern, pair[1], flags=re.S) for pattern in known)]
    assert not unknown
