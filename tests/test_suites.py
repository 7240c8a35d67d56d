"""tools/analysis_tools/suites.py: cells are measured once, and pages are made of them."""

import json
import math
from importlib.metadata import version
from pathlib import Path

import mmprune_gates  # noqa: F401  (cures come before the imports below)

# isort: split
import pytest
import suite_graph
import suite_slim
import suite_step
import suites
import torch
from suite_cells import FULL, GPU, QUICK, Cell, Page, write_page
from suite_models import CONFIG_OF, dense_model, path_of
from tiny_run import write_config
from torch import nn

from mmprune_gates.report.pictures import wide

pytestmark = pytest.mark.models
NUMBERS = {'step': (22, 9, 6), 'slim': (32, 4, 4), 'graph': (18, 6, None)}
SITES = list(suite_step.SITES)


@pytest.fixture(autouse=True)
def threads():
    """The number of threads is what it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def config(tmp_path):
    """Path of the smallest gated config."""
    return write_config(tmp_path / 'tiny.py', tmp_path)


def convs(model):
    """All convolutions."""
    return (module for module in model.modules() if isinstance(module, nn.Conv2d))


def page_of(folder, name):
    """What a page's JSON and markdown hold; its picture is one."""
    assert (folder / f'{name}.png').read_bytes().startswith(b'\x89PNG')
    return json.loads((folder / f'{name}.json').read_text()), (folder / f'{name}.md').read_text()


@pytest.mark.parametrize('name', suites.PAGES)
def test_cells_are_told_apart_and_their_settings_are_written(name):
    for size, number in zip((FULL, QUICK, GPU), NUMBERS[name], strict=True):
        if number is None:
            with pytest.raises(ValueError, match=f"--{size}: the page '{name}' has no such cells"):
                suites.PAGES[name].cells(size)
            continue
        cells = suites.PAGES[name].cells(size)
        assert len({cell.name for cell in cells}) == len(cells) == number
        assert all(json.loads(json.dumps(cell.settings)) for cell in cells)
        if size == GPU:
            assert {cell.settings['dtype'] for cell in cells} == {'fp32', 'bf16'}
            assert all(cell.settings['device'] == 'cuda' and cell.settings['batch'] == 16 for cell in cells)


def test_ten_models_have_configs():
    assert len(CONFIG_OF) == 10 and all(Path(path_of(model)).is_file() for model in CONFIG_OF)


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path):
    measured = []

    def measure(number):
        if number == 2 and len(measured) < 2:
            measured.append('stopped')
            raise KeyboardInterrupt
        measured.append(number)
        return {'square': number**2}

    def tables(found):
        return {'Squares': (['square'], [[str(own['square'])] for own in found])}

    page = Page('squares', {}, tables, lambda found: wide(1), '')
    cells = [Cell(f'cell-{number}', measure, {'number': number}) for number in (1, 2, 3)]
    with pytest.raises(KeyboardInterrupt):
        suites.make(page, 'squares', cells, tmp_path, tmp_path)
    write_page(page, 'squares', cells, tmp_path / 'squares', tmp_path)
    figures, text = page_of(tmp_path, 'squares')
    assert figures['provenance']['missing'] == ['cell-2', 'cell-3'] and '1 of 3 cells' in text
    suites.make(page, 'squares', cells, tmp_path, tmp_path)
    assert measured == [1, 'stopped', 2, 3]
    figures, text = page_of(tmp_path, 'squares')
    assert [own['square'] for own in figures['cells']] == [1, 4, 9] and figures['provenance']['missing'] == []
    assert '| 4 |' in text and figures['provenance']['versions'] in text and 'seed 0; 3 of 3 cells' in text
    assert f'torch {version("torch")}' in text


def test_the_page_on_steps(config, tmp_path):
    cells = [suite_step.cell(config, 16, site, pairs=3) for site in SITES]
    suites.make(suite_step.PAGE, 'step', cells, tmp_path, tmp_path)
    figures, text = page_of(tmp_path, 'step')
    placed, inputs, weights = figures['cells']
    assert set(placed['gates_on']) == {'affine'}
    assert max(inputs['gates_on'], key=inputs['gates_on'].get) == 'input'
    assert max(weights['gates_on'], key=weights['gates_on'].get) == 'weight'
    assert all(1 < own['saved_activation_bytes']['ratio'] < 1.02 for own in figures['cells'])
    assert all(own['step_peak_bytes']['ratio'] > 1 for own in figures['cells'])
    assert 'all on weights' in text and f'{placed["time_ratio"]["median"]:.3f} (' in text


def test_the_page_on_slim_models(config, tmp_path):
    options = {'cuts': (0.5, 0.7), 'rounds': 2}
    cells = [
        suite_slim.cell(config, 16, 'torch', 2, 1, **options),
        suite_slim.cell(config, 16, 'torch', 1, 8, dtype='bf16', **options),  # of whose 8 channels none can go
        suite_slim.cell(config, 16, 'onnxruntime', 2, 1, **{**options, 'cuts': (0.7,)}),
    ]
    suites.make(suite_slim.PAGE, 'slim', cells, tmp_path, tmp_path)
    figures, text = page_of(tmp_path, 'slim')
    eager, rounded, deployed = figures['cells']
    assert [slim['cut'] for slim in eager['slim']] == [0.5, 0.7]
    assert deployed['slim'][0]['macs_ratio'] == eager['slim'][1]['macs_ratio'] >= 1 / 0.3
    assert rounded['slim'] == []
    half = eager['slim'][0]
    assert half['share'] == half['speed_up']['median'] / half['macs_ratio']
    assert half['images_per_second'] == pytest.approx(2e3 / half['ms'])
    assert '50% of the MACs gone' in text and 'not allowed' in text


def test_the_page_on_the_graph(config, tmp_path):
    cell = suite_graph.cell(config, size=16, rounds=3)
    suites.make(suite_graph.PAGE, 'graph', [cell], tmp_path, tmp_path)
    figures, text = page_of(tmp_path, 'graph')
    (tiny,) = figures['cells']
    assert len(tiny['times']) == 4 and all(len(times) == 3 and min(times) > 0 for times in tiny['times'].values())
    assert tiny['layers'] == 4 and tiny['groups'] == 2 and tiny['peer_groups'] > 0
    assert f'{tiny["over_export"]["median"]:.2f} (' in text


def test_depth_and_width_are_those_of_the_chain():
    cells = [suite_graph.chain('depth', 32), suite_graph.chain('width', 8)]
    layers = [len(list(convs(dense_model(cell.settings['model'], cell.settings['options'])))) for cell in cells]
    assert layers == [33, 21]
    first = next(convs(dense_model(suite_graph.CHAIN, cells[1].settings['options'])))
    assert first.out_channels == 8


def test_the_exponent_is_that_of_the_time():
    points = [(size, {'times': {suite_graph.WHOLE: [3.0 * size**1.5]}}) for size in (10, 20, 50)]
    assert suite_graph.exponent(points, suite_graph.WHOLE) == pytest.approx(1.5)
    assert math.isnan(suite_graph.exponent(points[:1], suite_graph.WHOLE))


def test_what_the_peer_cannot_read_is_told(config, monkeypatch):
    def fails(model, images):
        raise AttributeError('what it stumbles over')

    monkeypatch.setattr(suite_graph, 'peer_groups', fails)
    figures = suite_graph.measure(config, 16, 2)
    assert figures['peer_fails'] == 'AttributeError: what it stumbles over'
    assert math.isnan(suite_graph.middle(figures, suite_graph.PEER))


def test_a_page_of_nothing_is_refused(tmp_path, capsys):
    assert suites.main(['step', '--so-far', '--work-dir', str(tmp_path)]) == 1
    assert "no cell of the page 'step' is in" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason='asks what is said where there is no GPU')
def test_without_a_gpu_it_says_so(tmp_path, capsys):
    assert suites.main(['step', 'slim', '--gpu', '--work-dir', str(tmp_path / 'none')]) == 1
    said = capsys.readouterr().err
    assert 'error: --gpu: no GPU is available' in said and 'Traceback' not in said
    assert not (tmp_path / 'none').exists()
