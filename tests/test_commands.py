"""Commands that documentation, configs and messages print are there, and start from any folder."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import environment_with, slow_but

ROOT = Path(__file__).parents[1]
NAMED = re.compile(r'(?<![\w/.])tools/[\w/]+\.py')
TOOLS = ('train.py', 'stock.py', 'analysis_tools/importance.py', 'dev/density.py', 'dev/zoo.py')
PLACES = ('README.md', 'Makefile', 'docs/**/*.md', 'configs/**/*.py', 'mmprune_gates/**/*.py', 'tools/**/*.py')


def test_every_tool_that_is_named_exists():
    texts = [path.read_text() for place in PLACES for path in ROOT.glob(place)]
    names = {name for text in texts for name in NAMED.findall(text)}
    assert len(names) > 10 and not [name for name in sorted(names) if not (ROOT / name).is_file()]


@pytest.mark.models
@pytest.mark.parametrize('name', slow_but(('dev/density.py',), TOOLS))
def test_a_tool_of_each_room_starts_from_any_folder(name, tmp_path):
    command = [sys.executable, '-W', 'ignore', str(ROOT / 'tools' / name), '--help']
    done = subprocess.run(command, cwd=tmp_path, env=environment_with(), capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(f'usage: {Path(name).name}'), done.stderr


def test_the_density_of_a_folder_that_is_not_there_is_an_error(tmp_path):
    command = [sys.executable, str(ROOT / 'tools' / 'dev' / 'density.py'), str(tmp_path / 'absent')]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and 'absent is no folder with Python files' in done.stderr


def test_code_that_is_too_dense_is_an_error(tmp_path):
    plain, dense = tmp_path / 'plain', tmp_path / 'dense'
    for folder, line in ((plain, 'total = first + second'), (dense, 'total = {a: [b * c + d for b in e] for a in f}')):
        folder.mkdir()
        (folder / 'code.py').write_text(f'{line}\n')
    command = [sys.executable, str(ROOT / 'tools' / 'dev' / 'density.py'), '--check']
    assert subprocess.run([*command, str(plain)]).returncode == 0
    done = subprocess.run([*command, str(dense)], capture_output=True, text=True)
    assert done.returncode == 1 and 'per line 14 (at most 6.0); .: nested/100 100 (at most 0.3)' in done.stderr
