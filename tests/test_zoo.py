"""The sweep over both model zoos: what is chosen, how it is measured, what the page says."""

import json
from pathlib import Path

import pytest
import torch
import zoo
import zoo_measure
import zoo_models
import zoo_onnx
import zoo_select
import zoo_table
from mmengine.config import ConfigDict
from torch import nn

GOOD = {
    'config': 'lenet/lenet5.py',
    'kind': 'convolutional',
    'failures': {},
    'seconds': {'build': 1.0},
    'shape': [1, 32, 32],
    'trace_s': 2.0,
    'export_s': 1.5,
    'macs': 10**9,
    'prunable_share': 0.99,
    'groups': 3,
    'free_groups': 2,
    'frozen': [{'reason': 'an output of the model', 'channels': 10, 'macs_share': 0.0}],
    'gate_error': 0.0,
    'slim_error': 1e-15,
    'rebuilt_error': 1e-15,
    'block_error': 2e-15,
    'training_error': 1e-14,
    'loss': 2.3,
}


def cells(line):
    """Cells of a line of a table."""
    return [cell.strip() for cell in line.strip('|').split('|')]


# What the page says.


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ({}, None),
        ({'slim_error': 2e-5}, 'slim error 2.0e-05'),
        ({'block_error': 2e-5}, 'block error 2.0e-05'),
        ({'gate_error': 1e-9}, 'gates change the output by 1.0e-09'),
        ({'failures': {'rebuild': 'ValueError: no'}}, 'rebuild: ValueError: no'),
        ({'notes': ['it is odd']}, 'it is odd'),
        ({'failures': {'trace': 'timeout after 9 s'}}, 'trace: timeout after 9 s'),
        ({'failures': {'stock': 'ImportError: x'}}, 'stock model does not train: ImportError: x'),
        ({'failures': {'stock': 'E: x', 'trace': 'E: x'}}, 'stock model does not train: E: x'),
        ({'failures': {'stock': 'E: x', 'run': 'E: y'}}, 'stock model does not run here: E: y'),
        (
            {
                'prunable_share': 0.5,
                'frozen': [
                    {'reason': 'mixed (aten.mm in a.b1)', 'channels': 4, 'macs_share': 0.2},
                    {'reason': 'an output of the model', 'channels': 4, 'macs_share': 0.0},
                    {'reason': 'mixed (aten.mm in a.b2)', 'channels': 4, 'macs_share': 0.3},
                ],
            },
            '50.0% prunable; frozen: mixed (mm) 50.0%',
        ),
    ],
)
def test_a_family_is_an_exception_with_its_reason(change, said):
    assert zoo_table.problems({**GOOD, **change}) == ([said] if said else [])


def test_totals_count_each_kind_on_its_own():
    worse = {**GOOD, 'slim_error': 1.0, 'prunable_share': 0.1, 'trace_s': 8.0}
    untraced = {'config': 'a/b.py', 'kind': 'transformer', 'failures': {'trace': 'RuntimeError: x'}, 'seconds': {}}
    unbuilt = {'config': 'a/b.py', 'failures': {'build': 'ImportError: x'}, 'seconds': {}}
    results = {'mmseg/a': GOOD, 'mmseg/b': worse, 'mmpretrain/c': untraced, 'mmseg/d': unbuilt}
    _, _, *rows, _, note = zoo_table.totals(results)
    assert cells(rows[0]) == ['convolutional', '2', '2', '2', '1', '2', '1', '2', '5.0 / 8.0']
    assert cells(rows[1]) == ['transformer', '1', '0', '0', '0', '0', '0', '0', '–']
    assert len(rows) == 2 and note.endswith('does not run here: mmseg/d.')


@pytest.mark.parametrize(
    ('failures', 'exact'),
    [
        ({}, False),
        ({'stock': 'E: x', 'training mode': 'E: x'}, True),
        ({'stock': 'E: x', 'training mode': 'E: y'}, False),
    ],
)
def test_only_a_model_without_a_training_mode_is_exact_without_it(failures, exact):
    result = {name: value for name, value in GOOD.items() if name != 'training_error'}
    assert zoo_table.slims({**result, 'failures': failures}) is exact


def test_the_page_has_every_family_and_what_is_excluded():
    unbuilt = {'config': 'a/b.py', 'failures': {'build': 'KeyError: a|b <c>'}, 'seconds': {}}
    text = zoo_table.page(
        {'mmseg/a': GOOD, 'mmpretrain/b': unbuilt}, {'mmseg': {'san': 'not a segmentor'}}, ['mmseg/c']
    )
    lines = text.splitlines()
    (row,) = [cells(line) for line in lines if line.startswith('| a |')]
    assert dict(zip(zoo_table.HEADER, row, strict=True)) == {
        'family': 'a',
        'config': 'lenet5',
        'kind': 'convolutional',
        'input': '32×32',
        'MACs': '1.00 G',
        'prunable': '99.0%',
        'free groups': '2 of 3',
        'trace (export) s': '2.0 (1.5)',
        'masked vs slim': '1e-15',
        'rebuilt': '1e-15',
        'blocks gone': '2e-15',
        'training mode': '1e-14',
        'trains': 'yes',
        'frozen': '–',
    }
    assert r'- **mmpretrain/b** (?): stock model does not run here: KeyError: a\|b &lt;c>' in lines
    assert '- mmseg/san: not a segmentor' in lines and 'Not measured yet: mmseg/c.' in lines
    tables = [line for line in lines if line.startswith('|')]
    assert {line.replace(r'\|', '').count('|') for line in tables} == {10, len(zoo_table.HEADER) + 1}


# What is chosen.


@pytest.mark.parametrize(
    'name', ['swin-large_1k', 'setr_vit-l_naive', 'fcn_r101-d8', 'efficientnet-b7_8xb32', 'vit-base']
)
def test_names_of_large_models(name):
    assert zoo_select.is_large(Path(f'{name}.py'))


@pytest.mark.parametrize(
    'name', ['fcn_r50-d8_4xb4', 'efficientnet-b0_8xb32', 'mobileone-s1_8xb32', 'mit-b0_8xb1', 'levit-128s']
)
def test_names_of_small_models(name):
    assert not zoo_select.is_large(Path(f'{name}.py'))


def test_the_larger_ones_are_kept_where_nothing_else_is():
    assert list(zoo_select.small({'a/r50.py': 1, 'a/r101.py': 2})) == ['a/r50.py']
    assert list(zoo_select.small({'a/vit-l_x.py': 1, 'a/r101.py': 2})) == ['a/vit-l_x.py', 'a/r101.py']


def test_the_size_does_not_depend_on_losses_and_classes():
    a = {'backbone': {'depth': 18}, 'head': [{'num_classes': 4, 'channels': 8}], 'test_cfg': {'mode': 'whole'}}
    b = {'backbone': {'depth': 18}, 'head': [{'num_classes': 7, 'channels': 8}]}
    assert zoo_select.sized(a) == zoo_select.sized(b) != zoo_select.sized({'backbone': {'depth': 50}})


def test_errors_are_one_line_without_paths():
    error = OSError('first\ncannot open /some/where/file-1.py\n')
    assert zoo_select.last_line(error) == 'OSError: cannot open file-1.py'
    assert len(zoo_select.last_line(ValueError('x' * 999))) == 240


def test_the_written_table_reads_back():
    selected = {'mmseg': ({'fcn': 'fcn/fcn.py'}, {'san': "it's " + 'long ' * 30})}
    scope: dict = {}
    exec(zoo_select.module_text(selected), scope)
    assert scope['SELECTED'] == {'mmseg': {'fcn': 'fcn/fcn.py'}}
    assert scope['EXCLUDED'] == {'mmseg': selected['mmseg'][1]}


def test_no_family_is_both_chosen_and_excluded():
    for scope in zoo_select.SCOPES:
        chosen, excluded = zoo_models.SELECTED[scope], zoo_models.EXCLUDED[scope]
        assert chosen and not chosen.keys() & excluded.keys()
        assert all(config.startswith(f'{family}/') for family, config in chosen.items())


# How it is measured.


class WindowMSA(nn.Module):
    """Attention by name and parts."""

    def __init__(self, part):
        super().__init__()
        self.part = part


@pytest.mark.parametrize(
    ('module', 'kind'),
    [
        (nn.Conv2d(3, 4, 3), 'convolutional'),
        (nn.Sequential(nn.Conv2d(3, 4, 16, stride=16), nn.Linear(4, 4)), 'mlp'),
        (nn.MultiheadAttention(4, 1), 'transformer'),
        (nn.Sequential(nn.Conv2d(3, 4, 3), WindowMSA(nn.Linear(4, 4))), 'transformer'),
        (WindowMSA(nn.Conv2d(3, 4, 3)), 'convolutional'),
    ],
)
def test_kind(module, kind):
    assert zoo_measure.kind(module) == kind


def test_shapes_begin_small_and_end_with_what_the_config_says():
    segmentor = ConfigDict(decode_head={'type': 'FCNHead'}, data_preprocessor={'size': (512, 1024)})
    assert zoo_measure.shapes(segmentor) == [(3, 64, 64), (3, 128, 128), (3, 512, 1024), (3, 512, 512)]
    classifier = ConfigDict(backbone={'img_size': 384}, head={})
    assert zoo_measure.shapes(classifier)[:2] == [(3, 384, 384), (3, 224, 224)]


def test_relative_error_refuses_what_shows_nothing():
    one = [torch.ones(2)]
    assert zoo_measure.relative_error([torch.tensor([1.0, 1.5])], one) == 0.5
    wrong = [torch.ones(3)], [torch.full((2,), float('nan'))], [torch.full((2,), float('inf'))]
    for found, expected in (
        *((outputs, one) for outputs in wrong),
        (one, [torch.zeros(2)]),
        *((one, b) for b in wrong),
    ):
        with pytest.raises(ValueError, match='an output'):
            zoo_measure.relative_error(found, expected)


def test_a_timeout_keeps_what_was_known(tmp_path, monkeypatch):
    model = ('mmseg', 'slow', 'slow/slow.py')

    def slow(command, timeout, **_):
        Path(command[-1]).write_text(json.dumps({**GOOD, 'running': 'gates', 'failures': {}}))
        raise zoo.subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(zoo.subprocess, 'run', slow)
    assert zoo.run(tmp_path, model, 5)['failures'] == {'gates': 'timeout after 5 s'}
    stored = json.loads((tmp_path / 'mmseg' / 'slow.json').read_text())
    assert stored == {**GOOD, 'failures': {'gates': 'timeout after 5 s'}}


def test_an_unknown_family_is_an_error(tmp_path, capsys):
    assert zoo.main(['--out-dir', str(tmp_path), '--only', 'mmseg/nothing']) == 1
    assert 'matches no family' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.models
def test_one_model_from_its_config_to_the_page(tmp_path):
    arguments = ['--out-dir', str(tmp_path / 'zoo'), '--only', 'mmpretrain/lenet']
    assert zoo.main(arguments) == 0
    path = tmp_path / 'zoo' / 'mmpretrain' / 'lenet.json'
    result = json.loads(path.read_text())
    assert not zoo_table.problems(result) and result['free_groups'] == 4 and result['removal_distance'] > 0.1
    assert 0 < result['export_s'] <= result['trace_s']
    changed = path.stat().st_mtime_ns
    assert zoo.main(arguments) == 0 and path.stat().st_mtime_ns == changed  # finished ones are not run again
    assert zoo.main([*arguments, '--write', str(tmp_path / 'zoo.md')]) == 0
    assert '| lenet | lenet5_mnist | convolutional |' in (tmp_path / 'zoo.md').read_text()
    assert list(json.loads((tmp_path / 'zoo.json').read_text())['models']) == ['mmpretrain/lenet']


# ONNX.


@pytest.mark.slow
@pytest.mark.models
def test_one_model_from_its_config_to_the_count_of_onnx_models(tmp_path, capsys):
    arguments = ['--out-dir', str(tmp_path), '--only', 'mmpretrain/lenet']
    assert zoo_onnx.main(arguments) == 0
    assert capsys.readouterr().out.endswith('1 of 1 are exported and agree\n')
    result = json.loads((tmp_path / 'mmpretrain' / 'lenet.json').read_text())
    assert 0 < result['error'] <= 1e-4 and 'Conv' in result['ops'] and 0 < result['macs_kept'] < 0.7


def test_models_that_are_not_exported_are_named():
    results = {
        'mmseg/good': {'failures': {}, 'error': 1e-6, 'equal': 1.0},
        'mmseg/fixed': {'failures': {}, 'error': 1e-6, 'equal': 1.0, 'any_batch': 'it counts windows'},
        'mmseg/odd': {'failures': {'export': 'ValueError: no translation for the op aten.odd in backbone'}},
        'mmseg/broken': {'failures': {'run': 'ImportError: x'}},
    }
    first, *others = zoo_onnx.told(results).split('\n')
    assert first == '2 of 3 are exported and agree'
    assert others == [
        'mmseg/fixed: only with a fixed batch: it counts windows',
        'mmseg/odd: export: ValueError: no translation for the op aten.odd in backbone',
    ]
