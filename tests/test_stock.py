"""tools/stock.py runs other packages' tools after the cures."""

import subprocess
import sys
from pathlib import Path

import pytest
import stock
from helpers import slow_but

from mmprune_gates import compat

STOCK = Path(stock.__file__)


def run_stock(*args):
    return subprocess.run([sys.executable, '-W', 'ignore', STOCK, *args], capture_output=True, text=True)


def test_a_script_runs_as_main_with_its_own_arguments(tmp_path):
    (tmp_path / 'beside.py').write_text("VALUE = 'imported from its own folder'\n")
    script = tmp_path / 'script.py'
    script.write_text("import sys, beside\nif __name__ == '__main__': print(sys.argv[1:], beside.VALUE)\n")
    done = run_stock(script, '--flag', 'x')
    assert done.stdout == "['--flag', 'x'] imported from its own folder\n", done.stderr


def test_an_unknown_package_is_named():
    with pytest.raises(SystemExit, match="'mmnothing' of 'mmnothing:test.py' is not installed"):
        stock.find_tool('mmnothing:test.py')


def test_an_unknown_script_lists_those_beside_it(tmp_path):
    (tmp_path / 'present.py').touch()
    with pytest.raises(SystemExit, match=r'no such tool: .*absent\.py\n.*present\.py'):
        stock.find_tool(str(tmp_path / 'absent.py'))


@pytest.mark.skipif(not compat.has_package('mmseg'), reason='mmsegmentation is not installed')
def test_a_tool_that_imports_its_models_first_starts():
    done = run_stock('mmseg:analysis_tools/get_flops.py', '--help')
    assert done.returncode == 0 and '--shape' in done.stdout, done.stderr


@pytest.mark.skipif(not compat.has_package('mmseg'), reason='mmsegmentation is not installed')
@pytest.mark.parametrize('name', slow_but(('dense',), ('dense', 'gdp')))
def test_get_flops_reads_dense_and_gated_configs(name):
    config = STOCK.parents[1] / 'configs' / 'demo' / f'{name}_deeplabv3plus_scenes.py'
    done = run_stock('mmseg:analysis_tools/get_flops.py', config, '--shape', '64', '96')
    assert done.returncode == 0 and 'Flops: ' in done.stdout, done.stderr
