"""The product of slimming: what is in it, what it equals, what is refused."""

import json

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from mmseg.apis import inference_model, init_model

from mmprune_gates.engine.checkpoint import load_weights, read_checkpoint
from mmprune_gates.engine.export import export_slim, outputs, relative_error
from mmprune_gates.engine.model_config import stock_model
from mmprune_gates.gates import gates_of
from mmprune_gates.slimming import slim_model


@pytest.fixture(scope='module')
def product(gated_run, tmp_path_factory):
    """(folder, report) of a slimmed run."""
    folder = tmp_path_factory.mktemp('product') / 'slim'
    config, checkpoint = gated_run
    return folder, export_slim(Config.fromfile(config), checkpoint, folder)


def gated_model(gated_run):
    config, checkpoint = gated_run
    init_default_scope('mmseg')
    model = MODELS.build(Config.fromfile(config).model).eval()
    load_weights(model, read_checkpoint(checkpoint), checkpoint)
    return model


def test_slim_equals_gated_in_every_head(gated_run, product):
    gated = gated_model(gated_run)
    slim = init_model(str(product[0] / 'slim.py'), str(product[0] / 'slim.pth'), device='cpu')
    for size in ((32, 48), (64, 64)):
        example = torch.randn(2, 3, *size)
        assert relative_error(outputs(gated, example), outputs(slim, example)) <= 1e-5
        assert len(outputs(slim, example)) == 2  # decode head and auxiliary head


def test_report_is_what_the_model_is(gated_run, product):
    folder, report = product
    assert json.loads((folder / 'slim.json').read_text()) == report
    gates = gates_of(gated_model(gated_run))
    assert report['macs']['after'] == gates.graph.macs(gates.kept())
    assert report['macs']['after'] / report['macs']['before'] <= 0.24
    slim = init_model(str(folder / 'slim.py'), str(folder / 'slim.pth'), device='cpu')
    assert report['params']['after'] == sum(parameter.numel() for parameter in slim.parameters())
    for name, group in report['groups'].items():
        assert group['kept'] == gates.kept()[name].nonzero().flatten().tolist()


def test_state_dict_has_the_stock_keys_and_loads_with_weights_only(gated_run, product):
    checkpoint = torch.load(product[0] / 'slim.pth', weights_only=True)
    stock = [key for key in gated_model(gated_run).state_dict() if not key.startswith('gates.')]
    assert list(checkpoint['state_dict']) == stock
    assert checkpoint['meta']['dataset_meta']['classes'][0] == 'background'


def test_slim_config_inherits_nothing_and_prunes_no_more(product):
    text = (product[0] / 'slim.py').read_text()
    assert '_base_' not in text
    config = Config.fromfile(product[0] / 'slim.py')
    assert config.model.type == 'mmprune_gates.SlimModel'
    assert config.custom_hooks == []
    assert config.load_from == f'{product[0]}/slim.pth'


def test_slim_model_infers_with_the_stock_api(product):
    model = init_model(str(product[0] / 'slim.py'), str(product[0] / 'slim.pth'), device='cpu')
    image = torch.randint(0, 255, (32, 48, 3), dtype=torch.uint8).numpy()
    assert inference_model(model, image).pred_sem_seg.data.shape == (1, 32, 48)
    assert type(model).__name__ == 'EncoderDecoder'


def test_slim_model_takes_a_loss_step(product, scenes):
    from mmengine.runner import Runner

    config = Config.fromfile(product[0] / 'slim.py')
    config.merge_from_dict({'work_dir': str(product[0].parent / 'fine_tune'), 'train_cfg.max_iters': 1})
    runner = Runner.from_cfg(config)
    before = runner.model.backbone.layer1[0].conv1.weight.detach().clone()
    runner.train()
    loaded = torch.load(product[0] / 'slim.pth', weights_only=True)['state_dict']['backbone.layer1.0.conv1.weight']
    after = runner.model.backbone.layer1[0].conv1.weight.detach()
    assert before.shape == after.shape == loaded.shape
    assert 0 < (after - loaded).abs().max() < 0.1  # started from slim.pth, and learned


def test_an_earlier_product_is_replaced(gated_run, product):
    config, checkpoint = gated_run
    export_slim(Config.fromfile(config), checkpoint, product[0])
    assert sorted(path.name for path in product[0].iterdir()) == ['slim.json', 'slim.pth', 'slim.py']
    assert [path.name for path in product[0].parent.glob('.slim-*')] == []


def test_a_folder_of_somebody_else_is_refused(gated_run, tmp_path):
    (tmp_path / 'thesis.tex').write_text('years of work')
    with pytest.raises(FileExistsError, match='thesis.tex'):
        export_slim(Config.fromfile(gated_run[0]), gated_run[1], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']


def test_a_config_without_gates_is_refused(gated_run, tmp_path):
    config = Config.fromfile(gated_run[0])
    config.model.type = 'EncoderDecoder'
    with pytest.raises(ValueError, match='GatedModel'):
        export_slim(config, gated_run[1], tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_a_checkpoint_of_another_architecture_is_refused(gated_run, tmp_path):
    config = Config.fromfile(gated_run[0])
    config.model.decode_head.channels = 24
    with pytest.raises(ValueError, match=r'does not fit EncoderDecoder: .*expected.* It seems to be of '):
        export_slim(config, gated_run[1], tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_the_message_says_what_a_checkpoint_seems_to_be(gated_run, tmp_path):
    config, checkpoint = Config.fromfile(gated_run[0]), torch.load(gated_run[1])
    dense = {name: value for name, value in checkpoint['state_dict'].items() if not name.startswith('gates.')}
    torch.save({**checkpoint, 'state_dict': dense}, tmp_path / 'dense.pth')
    with pytest.raises(ValueError, match=r'gates\..* is missing.* It seems to be of a run without gates'):
        export_slim(config, tmp_path / 'dense.pth', tmp_path / 'out')
    with pytest.raises(ValueError, match=r'gates\..* is not expected.* It seems to be of a model with gates'):
        load_weights(MODELS.build(stock_model(config.model)), checkpoint, gated_run[1])
    gate = next(name for name in checkpoint['state_dict'] if name.startswith('gates.'))
    checkpoint['state_dict'][gate] = torch.ones(3, 7)
    torch.save(checkpoint, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match='a run with gates of another method or of other groups'):
        export_slim(config, tmp_path / 'other.pth', tmp_path / 'out')


def test_nothing_is_written_when_parity_fails(gated_run, tmp_path, monkeypatch):
    def damaged(model, *options):
        spec = slim_model(model, *options)
        with torch.no_grad():
            next(model.parameters()).mul_(1.01)
        return spec

    monkeypatch.setattr('mmprune_gates.engine.export.slim_model', damaged)
    with pytest.raises(ValueError, match='differs from the gated one'):
        export_slim(Config.fromfile(gated_run[0]), gated_run[1], tmp_path / 'out')
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def slimmed_run(tiny_config, tmp_path):
    """From hook arguments and units of a short run to the gated model, the report, and a slim model fine-tuned."""

    def run(units, **arguments):
        config = tiny_config(tmp_path / 'run', iterations=10, **{'model.units': units})
        config.custom_hooks[0].update(steps=2, **arguments)
        runner = Runner.from_cfg(config)
        runner.train()
        config.dump(tmp_path / 'gated.py')
        folder, checkpoint = tmp_path / 'slim', tmp_path / 'run' / 'iter_10.pth'
        report = export_slim(Config.fromfile(tmp_path / 'gated.py'), checkpoint, folder)
        slim = init_model(str(folder / 'slim.py'), str(folder / 'slim.pth'), device='cpu')
        example = torch.randn(2, 3, 32, 48)
        assert relative_error(outputs(runner.model.eval(), example), outputs(slim, example)) <= 1e-5
        slim_config = Config.fromfile(folder / 'slim.py')
        changes = {'work_dir': str(tmp_path / 'tune'), 'train_cfg.max_iters': 2, 'experiment_name': 'tune'}
        slim_config.merge_from_dict({**changes, 'visualizer.name': 'tune'})
        Runner.from_cfg(slim_config).train()  # fine-tuning works with blocks gone
        return report, slim, slim_config.model.removed

    return run


@pytest.mark.slow
def test_a_run_with_gates_on_blocks_ends_in_a_model_without_some(slimmed_run):
    report, slim, removed = slimmed_run('blocks', target_macs=0.8)
    blocks = report['blocks']
    assert blocks['after'] == blocks['before'] - len(blocks['removed']) < blocks['before']
    assert report['macs']['after'] <= 0.8 * report['macs']['before'] and not report['groups']
    assert removed and not set(removed.values()) - {None}
    assert not [name for name in slim.state_dict() if name.startswith(tuple(f'{path}.' for path in removed))]


@pytest.mark.slow
def test_a_run_without_a_floor_empties_blocks_whose_constants_stay(slimmed_run):
    report, slim, removed = slimmed_run('channels', target_macs=0.03, floor=0.0)
    blocks = report['blocks']
    assert blocks['removed'] == blocks['constant'] != []
    constants = {f'{path}.constant': tuple(shape) for path, shape in removed.items() if shape}
    assert len(constants) == len(blocks['constant'])
    assert constants.items() <= {name: tuple(value.shape) for name, value in slim.state_dict().items()}.items()
