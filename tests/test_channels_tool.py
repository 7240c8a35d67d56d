"""tools/channels.py: what of a model can be pruned, as a table and as JSON."""

import json
from pathlib import Path

import channels
import pytest

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / 'configs' / 'gdp_deeplabv3plus_voc.py')
STOCK = "_base_ = 'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-40k_voc12aug-512x512.py'\n"
pytestmark = pytest.mark.models


@pytest.fixture(scope='module')
def report(tmp_path_factory):
    """The JSON report of the VOC config."""
    path = tmp_path_factory.mktemp('channels') / 'new' / 'channels.json'
    assert channels.main([CONFIG, '--json', str(path)]) == 0
    assert [entry.name for entry in path.parent.iterdir()] == ['channels.json']
    return json.loads(path.read_text())


def test_all_of_deeplab_is_prunable_but_its_image_input_and_its_classes(report):
    layers = {layer['name']: layer for layer in report['layers']}
    assert {name.partition('.')[0] for name in layers} == {'backbone', 'decode_head', 'auxiliary_head'}
    out_frozen = {name for name, layer in layers.items() if layer['out_frozen']}
    assert out_frozen == {'decode_head.conv_seg', 'auxiliary_head.conv_seg'}
    in_frozen = {name for name, layer in layers.items() if layer['in_frozen'] and layer['kind'] != 'depthwise conv'}
    assert in_frozen == {'backbone.stem.0'}
    assert all(layer['prunable'] for layer in layers.values())


def test_totals(report):
    assert report['input_shape'] == [3, 512, 512]
    assert report['macs'] == sum(layer['macs'] for layer in report['layers'])
    assert report['macs'] == pytest.approx(176.2e9, rel=1e-3)
    assert report['prunable_share'] >= 0.99


def test_every_layer_refers_to_groups_that_exist(report):
    groups = {group['name'] for group in report['groups']}
    for layer in report['layers']:
        assert {*layer['out_groups'], *layer['in_groups']} <= groups


@pytest.mark.slow
def test_a_stock_config_has_the_same_coverage_as_its_gated_one(tmp_path, report, capsys):
    (tmp_path / 'stock.py').write_text(STOCK)
    assert channels.main([str(tmp_path / 'stock.py'), '--json', str(tmp_path / 'stock.json')]) == 0
    stock = json.loads((tmp_path / 'stock.json').read_text())
    assert {**stock, 'config': None} == {**report, 'config': None}
    out = capsys.readouterr().out
    assert '[frozen: an output of the model] <- auxiliary_head.convs.0.conv (256)' in out
    assert 'prunable (100.00%)' in out


def test_a_classifier_needs_to_be_told_its_input(tmp_path, capsys):
    config = tmp_path / 'vgg.py'
    config.write_text("_base_ = ['mmpretrain::_base_/models/vgg11bn.py', 'mmpretrain::_base_/default_runtime.py']\n")
    assert channels.main([str(config)]) == 1
    assert 'model.input_shape' in capsys.readouterr().err
    assert channels.main([str(config), '--shape', '224', '224']) == 0
    assert 'classifier.0' in capsys.readouterr().out.replace('backbone.', '')


def test_the_tree_has_every_module_once_and_its_shares_add_up(report):
    rows = channels.branch([(layer['name'].split('.'), layer) for layer in report['layers']], 0)
    tops = [(name, macs) for name, macs, _ in rows if not name.startswith(' ')]
    assert [name for name, _ in tops] == ['backbone', 'decode_head', 'auxiliary_head']
    assert sum(macs for _, macs in tops) == report['macs']
    assert len([layer for *_, layer in rows if layer]) == len(report['layers'])
    assert ['    1', '      conv1'] == [name for name, *_ in rows][11:13]


def test_blocks_are_counted_together(report):
    assert len(report['blocks']) == 12 and 0 < report['block_macs'] == sum(block['macs'] for block in report['blocks'])


def test_what_keeps_its_full_width_is_counted(report):
    assert report['full_width'] == [] and not any('full width' in line for line in channels.table(report))
    lines = channels.table({**report, 'full_width': ['a.norm', 'b.norm']})
    assert '2 modules compute across channels and keep their full width' in lines


def test_a_slim_model_that_would_be_gated_is_refused_as_in_training(tmp_path, capsys):
    config = tmp_path / 'second.py'
    config.write_text(f"_base_ = '{CONFIG}'\nmodel = dict(widths={{}})\n")
    assert channels.main([str(config)]) == 1
    assert 'model.widths: the base config is of a slim model, which is not pruned again' in capsys.readouterr().err
