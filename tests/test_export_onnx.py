"""tools/export_onnx.py: what it writes computes what the model does, says where it comes from, or is not written."""

import json

import onnx
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmseg.apis import inference_model, init_model
from model_checks import randomize_
from tiny_run import DENSE, TinyNet, load_tool, write_config
from torch import nn

from mmprune_gates.channels.flow import BEHIND, NONE
from mmprune_gates.engine import onnx_export, onnx_graph
from mmprune_gates.engine.export import export_slim
from mmprune_gates.engine.onnx_graph import IMAGES, LABELS, Deployed, run_session, session_of
from mmprune_gates.gates.full_width import has_full_width

pytestmark = pytest.mark.models
tool = load_tool('export_onnx')
SLIM = "model.update(type='mmprune_gates.SlimModel', widths=0.5); del custom_hooks"
CONVNEXT = """
model['backbone'] = dict(type='ConvNeXt', arch=dict(depths=[1, 1, 1, 1], channels=[16, 16, 24, 24]), drop_path_rate=0.)
model['neck'], model['input_shape'] = None, (3, 32, 32)
model['head'].update(in_channels=24)
"""
CONVNEXT_V2 = f"{CONVNEXT}model['backbone'].update(use_grn=True, layer_scale_init_value=0.)"
POOLFORMER = """
arch = dict(layers=[1, 1, 1, 1], embed_dims=[16, 24, 32, 40], mlp_ratios=[2, 2, 2, 2], layer_scale_init_value=1e-5)
model['backbone'] = dict(type='PoolFormer', arch=arch)
model['neck'], model['input_shape'] = dict(type='GlobalAveragePooling'), (3, 32, 32)
model['head'].update(in_channels=40)
"""


@MODELS.register_module(force=True)
class BesselNet(TinyNet):
    """Has an op that ONNX lacks, in its branch."""

    def __init__(self, width):
        super().__init__(width)
        self.branch.add_module('bessel', Bessel())


class Bessel(nn.Module):
    """An op that ONNX lacks."""

    def forward(self, x):
        return torch.special.bessel_j0(x)


@MODELS.register_module(force=True)
class PairNet(TinyNet):
    """Its code knows a batch of one, and takes every other for one of two."""

    def forward(self, x):
        (x,) = super().forward(x)
        return (x if len(x) == 1 else x.reshape(2, *x.shape[1:]),)


@MODELS.register_module(force=True)
class DrawingNet(TinyNet):
    """Draws random numbers when it infers."""

    def forward(self, x):
        (x,) = super().forward(x)
        return (x + torch.rand_like(x),)


@pytest.fixture(scope='module')
def product(gated_run, tmp_path_factory):
    """Folder of a slimmed run of a tiny DeepLabV3+."""
    folder = tmp_path_factory.mktemp('product') / 'slim'
    config, checkpoint = gated_run
    export_slim(Config.fromfile(config), checkpoint, folder)
    return folder


@pytest.fixture
def classifier(tmp_path):
    """A function: paths of the config of a tiny classifier, with changes, and of random weights for it."""

    def make(*changes):
        config = write_config(tmp_path / 'net.py', tmp_path, *changes)
        opened = Config.fromfile(config)
        init_default_scope('mmpretrain')
        model = randomize_(MODELS.build(opened.model))
        torch.save({'state_dict': model.state_dict()}, tmp_path / 'net.pth')
        return config, str(tmp_path / 'net.pth')

    return make


def read(path):
    """(onnx model, its metadata) of a file."""
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    return proto, {entry.key: entry.value for entry in proto.metadata_props}


def run(proto, images):
    """What onnxruntime makes of images."""
    return torch.from_numpy(session_of(proto).run(None, {IMAGES: images.numpy()})[0])


def refused(capsys, *arguments):
    """The message of a tool that ended with code 1, without a stack trace."""
    assert tool.main([str(argument) for argument in arguments]) == 1
    text = capsys.readouterr().err
    assert 'Traceback' not in text
    return text[text.index('error: ') :]


# what is written ---------------------------------------------------------------------------------------------


def test_a_slim_segmentor_becomes_one_file_that_says_where_it_comes_from(product, tmp_path, capsys):
    out = tmp_path / 'new' / 'slim.onnx'
    assert tool.main([str(product / 'slim.py'), str(product / 'slim.pth'), str(out)]) == 0
    printed = capsys.readouterr().out
    assert 'images (batch x 3 x 32 x 48, float32) -> logits' in printed and 'opset' in printed
    assert [path.name for path in out.parent.iterdir()] == ['slim.onnx']
    proto, said = read(out)
    model = init_model(str(product / 'slim.py'), str(product / 'slim.pth'), device='cpu')
    images = torch.randn(4, 3, 32, 48)
    meta = {'img_shape': (32, 48)}
    with torch.no_grad():
        expected = model.encode_decode(images, [meta] * 4)
    assert onnx_graph.relative_error([expected], [run(proto, images)]) <= 1e-4
    assert 'BatchNormalization' not in {node.op_type for node in proto.graph.node}
    report = json.loads((product / 'slim.json').read_text())
    assert json.loads(said['macs']) == report['macs'] and json.loads(said['params']) == report['params']
    assert json.loads(said['pruned_from']) == report['provenance']
    assert json.loads(said['classes'])[0] == 'background' and len(json.loads(said['palette'])[0]) == 3
    assert json.loads(said['preprocessing'])['bgr_to_rgb'] is True
    assert json.loads(said['input']) == {'name': 'images', 'shape': ['batch', 3, 32, 48]}
    assert said['config'] == 'slim.py' and said['checkpoint'] == 'slim.pth' and int(said['opset']) >= 18
    assert float(said['relative_error']) <= 1e-4
    assert str(product) not in str(proto) and '.py' not in str(proto.graph)  # nothing of this machine


@pytest.mark.slow
def test_a_label_map_of_any_size_is_what_the_model_predicts(product, tmp_path):
    out = tmp_path / 'slim.onnx'
    paths = [str(product / 'slim.py'), str(product / 'slim.pth'), str(out)]
    assert tool.main([*paths, '--argmax', '--dynamic-size', '--shape', '3', '32', '32']) == 0
    proto, said = read(out)
    assert said['output'] == LABELS and float(said['equal_labels']) >= 0.999 and 'relative_error' not in said
    assert json.loads(said['input'])['shape'] == ['batch', 3, 'height', 'width']
    dimensions = proto.graph.output[0].type.tensor_type.shape.dim
    assert [dimension.dim_param for dimension in dimensions] == ['batch', 'height', 'width']
    model = init_model(str(product / 'slim.py'), str(product / 'slim.pth'), device='cpu')
    picture = torch.randint(0, 255, (40, 72, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model.cfg.test_pipeline = [step for step in model.cfg.test_pipeline if 'Resize' not in step.type]
    expected = inference_model(model, picture.numpy()).pred_sem_seg.data
    values = json.loads(said['preprocessing'])
    mean, std = (torch.tensor(values[key]).view(3, 1, 1) for key in ('mean', 'std'))
    images = (picture.permute(2, 0, 1).flip(0) - mean) / std  # bgr_to_rgb
    labels = run(proto, images[None])
    assert labels.dtype == torch.int64 and labels.shape == (1, 40, 72)
    assert (labels == expected).float().mean() >= 0.999


def test_a_dense_classifier_takes_any_batch(classifier, tmp_path):
    config, checkpoint = classifier(DENSE)
    out = tmp_path / 'net.onnx'
    assert tool.main([config, checkpoint, str(out), '--shape', '3', '16', '16']) == 0
    proto, said = read(out)
    assert said['architecture'] == 'ImageClassifier' and 'macs' not in said and 'pruned_from' not in said
    model = MODELS.build(Config.fromfile(config).model).eval()
    model.load_state_dict(torch.load(checkpoint)['state_dict'])
    images = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        expected = model(images, mode='tensor')
    found = run(proto, images)
    assert found.shape == (5, 2) and onnx_graph.relative_error([expected], [found]) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ('network', 'zeros', 'options', 'size'),
    [
        (CONVNEXT, {BEHIND}, ['--dynamic-size'], (64, 96)),
        (CONVNEXT_V2, {BEHIND, NONE}, [], (32, 32)),  # dense or slim, onnxruntime fails at other sizes
        (POOLFORMER, {BEHIND}, ['--dynamic-size'], (64, 96)),
    ],
    ids=['ConvNeXt', 'ConvNeXt V2', 'PoolFormer'],
)
def test_modules_that_keep_their_full_width_are_exported(classifier, tmp_path, network, zeros, options, size):
    config, checkpoint = classifier(network, SLIM)
    out = tmp_path / 'net.onnx'
    assert tool.main([config, checkpoint, str(out), *options]) == 0
    proto, said = read(out)
    model = MODELS.build(Config.fromfile(config).model).eval()
    widths = [module.mmprune_gates_width for module in model.modules() if has_full_width(module)]
    assert {width['zeros'] for width in widths} == zeros
    model.load_state_dict(torch.load(checkpoint)['state_dict'])
    images = torch.randn(3, 3, *size)
    with torch.no_grad():
        expected = model(images, mode='tensor')
    assert onnx_graph.relative_error([expected], [run(proto, images)]) <= 1e-4
    assert said['architecture'] == 'ImageClassifier'


def test_a_single_logit_is_a_label_above_the_threshold_of_its_head():
    class Head(nn.Module):
        threshold = 0.3

    class Segmentor(nn.Module):
        decode_head = Head()

        def extract_feat(self, images):
            return images

        def encode_decode(self, images, metas):
            return images

    images = torch.tensor([-1.0, -0.8, 0.0, 5.0]).view(1, 1, 2, 2)  # sigmoid: 0.27, 0.31, 0.5, 0.99
    assert Deployed(Segmentor(), labels=True)(images).tolist() == [[[0, 1], [1, 1]]]


# what is not -------------------------------------------------------------------------------------------------


def test_an_op_that_onnx_lacks_is_named_with_its_module(classifier, tmp_path, capsys):
    config, checkpoint = classifier("model['backbone'].update(type='mmengine.BesselNet')", SLIM)
    message = refused(capsys, config, checkpoint, tmp_path / 'net.onnx')
    assert 'bessel_j0 in backbone.branch.bessel' in message
    assert not list(tmp_path.glob('*net.onnx*'))


def test_a_batch_that_the_code_fixes_is_named(classifier, tmp_path, capsys):
    config, checkpoint = classifier("model['backbone'].update(type='mmengine.PairNet')", SLIM)
    message = refused(capsys, config, checkpoint, tmp_path / 'net.onnx')
    assert 'the code of ImageClassifier fixes batch (2) of its input' in message and '--batch N' in message
    out = tmp_path / 'net.onnx'
    assert not out.exists()
    assert tool.main([config, checkpoint, str(out), '--batch', '2']) == 0
    proto, said = read(out)
    assert json.loads(said['input'])['shape'] == [2, 3, 16, 16] and run(proto, torch.randn(2, 3, 16, 16)).shape == (
        2,
        2,
    )


def test_a_model_that_draws_random_numbers_is_refused(classifier, tmp_path, capsys):
    config, checkpoint = classifier("model['backbone'].update(type='mmengine.DrawingNet')", SLIM)
    assert 'draws random numbers when it infers (Random' in refused(capsys, config, checkpoint, tmp_path / 'net.onnx')
    assert not list(tmp_path.glob('*net.onnx*'))


@pytest.mark.parametrize('damage', [1.01, float('nan')])
def test_nothing_is_written_when_onnxruntime_does_not_agree(classifier, tmp_path, capsys, monkeypatch, damage):
    """A weight of the ONNX model is damaged after its translation."""
    config, checkpoint = classifier(SLIM)
    out = tmp_path / 'net.onnx'
    out.write_text('as it was')
    translated = onnx_export.onnx_of

    def damaged(*options):
        proto = translated(*options)
        weight = max(proto.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        values = onnx.numpy_helper.to_array(weight) * damage
        weight.CopyFrom(onnx.numpy_helper.from_array(values.astype('float32'), weight.name))
        return proto

    monkeypatch.setattr(onnx_export, 'onnx_of', damaged)
    assert 'differs from the eager one: relative error' in refused(capsys, config, checkpoint, out)
    assert out.read_text() == 'as it was' and [path.name for path in tmp_path.glob('*net.onnx*')] == ['net.onnx']


def test_what_onnxruntime_cannot_run_is_told(classifier, tmp_path):
    config, checkpoint = classifier(SLIM)
    out = tmp_path / 'net.onnx'
    assert tool.main([config, checkpoint, str(out)]) == 0
    with pytest.raises(ValueError, match=r'(?s)cannot run the model for images of \(1, 5, 16, 16\): .*Got: 5'):
        run_session(session_of(read(out)[0]), torch.randn(1, 5, 16, 16))


def test_labels_that_differ_do_not_hold():
    shapes = ((1, 3, 8, 8),)
    assert onnx_graph.Agreement(shapes, None, 0.999).holds and onnx_graph.Agreement(shapes, 1e-4, 1.0).holds
    assert not onnx_graph.Agreement(shapes, None, 0.9989).holds
    assert not onnx_graph.Agreement(shapes, 1e-9, 0.9).holds
    assert not onnx_graph.Agreement(shapes, float('nan'), 1.0).holds


def test_a_model_whose_own_outputs_are_not_finite_is_refused(classifier, tmp_path, capsys):
    config, checkpoint = classifier(SLIM)
    state = torch.load(checkpoint)['state_dict']
    state['head.fc.weight'].fill_(3e38)
    torch.save({'state_dict': state}, checkpoint)
    assert 'the outputs of the model are not finite' in refused(capsys, config, checkpoint, tmp_path / 'net.onnx')
    assert not list(tmp_path.glob('*net.onnx*'))


@pytest.mark.parametrize(
    ('change', 'options', 'words'),
    [
        (SLIM, ['--argmax'], '--argmax is for segmentors; ImageClassifier has no label map'),
        (SLIM, ['--shape', '4', '16', '16'], 'does not take images of shape (4, 16, 16)'),
        (DENSE, [], 'model.input_shape'),
        ('', [], 'run tools/slim.py first'),
        (f"{SLIM}; model['head'] = None", [], 'gives a tuple where one tensor of logits was expected'),
    ],
)
def test_what_does_not_fit_is_refused_before_any_export(classifier, tmp_path, capsys, change, options, words):
    config, checkpoint = classifier(change)
    assert words in refused(capsys, config, checkpoint, tmp_path / 'net.onnx', *options)
    assert not list(tmp_path.glob('*net.onnx*'))


def test_a_missing_package_is_named_with_its_cure(monkeypatch):
    monkeypatch.setattr(onnx_graph, 'PACKAGES', ('onnx', 'no_such_package'))
    with pytest.raises(ValueError, match=r"needs no_such_package: pip install 'mmprune_gates\[onnx\]'"):
        onnx_graph.require_packages()


class Pooled(nn.Module):
    """Pools to so many cells each way."""

    def __init__(self, cells):
        super().__init__()
        self.cells = nn.AdaptiveAvgPool2d(cells)

    def forward(self, images, mode):
        return self.cells(images).flatten(1)


@pytest.mark.parametrize('text', ['{"macs": {"before"', '[]', '{}'])
def test_a_slim_json_that_was_cut_is_named(tmp_path, text):
    (tmp_path / 'slim.pth').write_bytes(b'weights')
    (tmp_path / 'slim.json').write_text(text)
    with pytest.raises(ValueError, match='the file was cut or changed'):
        onnx_export.origin(Config(dict(model=dict(type='A'))), {'meta': {'slim': {'macs': {}}}}, tmp_path / 'slim.pth')


def test_pooling_to_cells_of_images_of_any_size_is_refused():
    several, one = Deployed(Pooled(2)), Deployed(Pooled(1))
    with pytest.raises(ValueError, match=r'adaptive_avg_pool2d to \(2, 2\) in cells .*leave out --dynamic-size'):
        onnx_graph.onnx_of(several, (3, 8, 8), dynamic_size=True)
    for module, dynamic in ((several, False), (one, True)):
        shapes = onnx_export.shapes_to_compare(module, (3, 9, 13), dynamic, None)
        assert len(shapes) == (4 if dynamic else 2)
        assert onnx_graph.compare(session_of(onnx_graph.onnx_of(module, (3, 9, 13), dynamic)), module, shapes).holds


def test_odd_sizes_are_compared_where_the_model_takes_them():
    class Halves(nn.Module):
        def forward(self, images, mode):
            return images.unflatten(2, (-1, 2)).mean((2, 3, 4))

    sizes = [shape[2:] for shape in onnx_export.shapes_to_compare(Deployed(Pooled(1)), (3, 8, 8), True, None)]
    assert sizes == [(8, 8), (8, 8), (72, 136), (9, 13)]
    assert len(onnx_export.shapes_to_compare(Deployed(Halves()), (3, 8, 8), True, 4)) == 3
