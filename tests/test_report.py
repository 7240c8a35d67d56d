"""The page of a run shows what the run has, agrees with slim.json, and says what it leaves out."""

import base64
import copy
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from digits_data import write_digits
from helpers import slow_but, train
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from PIL import Image
from report import main

from mmprune_gates.engine.export import export_slim
from mmprune_gates.engine.record_hook import read_history
from mmprune_gates.engine.slim_report import check_report
from mmprune_gates.report import read_run
from mmprune_gates.report.network import network_of
from mmprune_gates.report.page import TITLES

CONFIGS = Path(__file__).parents[1] / 'configs' / 'demo'
RECORD = dict(type='mmprune_gates.GateRecordHook', interval=3)
GBN = dict(tick=2, tock=2, ticks=2, fraction=0.1, target_macs=0.4, by_epoch=False, subset=1.0)
KINDS = ('gdp-scenes', 'gbn-scenes', 'gdp-digits', 'gbn-digits')
PICTURES = [key for key in TITLES if key != 'blocks']


@HOOKS.register_module()
class Killed(Hook):
    """Ends a run in the middle of an iteration, and nothing after it happens."""

    priority = 'LOWEST'

    def __init__(self, at):
        self.at = at

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        """Raise."""
        if runner.iter + 1 == self.at:
            raise InterruptedError('killed')


def scenes_config(tiny_config, folder, method, **overrides):
    config = tiny_config(folder, f'demo/{method}_deeplabv3plus_scenes.py', 14, **overrides)
    config.custom_hooks = [{**config.custom_hooks[0], **(GBN if method == 'gbn' else dict(steps=2))}, RECORD]
    return config


def digits_config(data, folder, method):
    config = Config.fromfile(CONFIGS / f'{method}_resnet20_digits.py')
    pruning = dict(tick=1, tock=1, ticks=2, fraction=0.2, subset=0.5, target_macs=0.5)
    pruning = pruning if method == 'gbn' else dict(steps=2, target_macs=0.1, floor=0.0)
    config.custom_hooks[0].update(pruning)
    name = folder.as_posix().replace('/', '-')
    overrides = {f'{part}_dataloader.dataset.data_root': str(data) for part in ('train', 'val', 'test')}
    overrides |= {f'{part}_dataloader.collate_fn': dict(type='default_collate') for part in ('train', 'val')}
    overrides |= {'train_cfg.max_epochs': 5, 'train_cfg.val_interval': 2, 'default_hooks.checkpoint.interval': 5}
    overrides |= {'experiment_name': name, 'visualizer.name': name, 'work_dir': str(folder), 'load_from': None}
    config.merge_from_dict({**overrides, 'train_dataloader.dataset.indices': 200})
    return config


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp('data') / 'digits')


@pytest.fixture(scope='module')
def finished(tmp_path_factory, tiny_config, digits):
    """A function: (work directory, folder of the slim model) of a finished run of a kind; run once."""
    made = {}

    def of(kind):
        if kind not in made:
            method, data = kind.split('-')
            folder = tmp_path_factory.mktemp(kind)
            config = digits_config(digits, folder, method)
            if data == 'scenes':
                config = scenes_config(tiny_config, folder, method, **{'train_cfg.val_interval': 7})
            train(config)
            slim = tmp_path_factory.mktemp(f'{kind}-slim')
            run = read_run(folder)
            export_slim(run.config, run.checkpoint, slim)
            made[kind] = folder, slim
        return made[kind]

    return of


class Tags(HTMLParser):
    """Text and images of a page; fails where a tag is not closed."""

    def __init__(self, page):
        super().__init__()
        self.open, self.images, self.text = [], [], ''
        self.feed(page.read_text())
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag not in ('meta', 'img'):
            self.open.append(tag)
        elif tag == 'img':
            self.images.append(dict(attrs)['src'])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def reported(run, out, *options):
    """The page of a run; its pictures are checked to be those beside it."""
    assert main([str(run), '--out', str(out), '--images', '2', '--samples', '30', *map(str, options)]) == 0
    page = Tags(out / 'index.html')
    pictures = sorted(out.glob('*.png'))
    files = {f'data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}' for path in pictures}
    assert set(page.images) == files and len(page.images) == len(pictures)
    for path in pictures:
        with Image.open(path) as picture:
            assert min(picture.size) > 200 and np.ptp(np.asarray(picture)) > 100
    assert {path.name for path in out.iterdir()} == {'index.html', *(path.name for path in pictures)}
    return page, {path.stem for path in pictures}


@pytest.mark.parametrize('kind', slow_but(('gdp-scenes',), KINDS))
def test_a_finished_run_with_its_slim_model_has_every_section(finished, tmp_path, kind):
    run, slim = finished(kind)
    before = sorted(path.name for path in run.iterdir())
    page, pictures = reported(run, tmp_path / 'out', '--slim', slim)
    recorded = kind != 'gdp-digits'  # that config has no GateRecordHook
    assert pictures == set(PICTURES) - (set() if recorded else {'gates', 'histograms'})
    assert ('Left out' in page.text) != recorded and 'did not reach' not in page.text
    assert (
        recorded or "no gates.jsonl: record gates with custom_hooks = [..., dict(type='mmprune_gates.GateR" in page.text
    )
    config = next(path for path in run.glob('*_*.py'))
    last = (run / 'last_checkpoint').read_text().strip()
    assert f'python tools/train.py {config} --work-dir {run}\n' in page.text
    assert f'python tools/slim.py {config} {last} {slim}\n' in page.text
    assert f'python tools/test.py {slim}/slim.py {slim}/slim.pth' in page.text
    report = json.loads((slim / 'slim.json').read_text())
    assert report['provenance']['checkpoint_sha256'] in page.text
    assert f'{report["macs"]["before"]:,} → {report["macs"]["after"]:,}' in page.text
    assert sorted(path.name for path in run.iterdir()) == before


@pytest.mark.parametrize('kind', slow_but(('gdp-scenes', 'gbn-digits'), KINDS))
def test_costs_widths_and_blocks_are_those_of_the_slim_model(finished, kind):
    folder, slim = finished(kind)
    found, report = network_of(read_run(folder, slim)), json.loads((slim / 'slim.json').read_text())
    before, after = (sum(pair[side] for pair in found.costs.values()) for side in (0, 1))
    assert (before, after) == (report['macs']['before'], report['macs']['after'])
    assert sorted(found.gone) == sorted(report['blocks']['removed'])
    assert len(found.blocks) == report['blocks']['before']
    weights = torch.load(slim / 'slim.pth', weights_only=True)['state_dict']
    shapes = {
        name: len(weights[f'{name}.weight']) for name in (w.name for w in found.widths) if f'{name}.weight' in weights
    }
    assert len(shapes) > 10 and shapes == {w.name: w.after for w in found.widths if w.name in shapes}
    assert all(w.after == 0 for w in found.widths if w.name not in shapes)  # the module is gone


@pytest.mark.slow
def test_a_run_that_empties_blocks_names_them(finished, tmp_path):
    run, slim = finished('gdp-digits')
    gone = json.loads((slim / 'slim.json').read_text())['blocks']['removed']
    page, _ = reported(run, tmp_path / 'out', '--slim', slim)
    assert gone and f'{len(gone)} of the 7 residual blocks that could go are gone' in page.text
    assert all(name in page.text for name in gone)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['gdp-scenes', 'gbn-digits'])
def test_without_a_slim_model_the_gates_say_the_same(finished, tmp_path, kind):
    run, slim = finished(kind)
    page, pictures = reported(run, tmp_path / 'out')
    assert pictures == set(PICTURES)
    assert f'Slim model: {run}/slim/slim.json does not exist: write it with tools/slim.py' in page.text
    alone, beside = network_of(read_run(run)), network_of(read_run(run, slim))
    assert alone.widths == beside.widths and alone.gone == beside.gone
    assert all(alone.costs[stage] == pytest.approx(cost) for stage, cost in beside.costs.items())


@pytest.mark.parametrize('kind', slow_but(('gbn-digits',), ('gdp-digits', 'gbn-digits')))
def test_the_confusion_matrix_has_the_accuracy_of_the_last_validation(finished, tmp_path, kind):
    folder, slim = finished(kind)
    run = read_run(folder, slim)
    page, _ = reported(folder, tmp_path / 'out', '--slim', slim, '--samples', '450')
    right = int(re.search(r'slim model, (\d+) of 450 images right', page.text)[1])
    assert run.metric == 'accuracy/top1' and 100 * right / 450 == pytest.approx(run.measured()[-1][1], abs=0.01)
    assert len(run.measured()) > 1


def test_the_record_ends_with_the_last_iteration_though_epochs_of_ticks_are_shorter(finished):
    run = read_run(finished('gbn-digits')[0])
    meta = torch.load(run.checkpoint, weights_only=True)['meta']
    assert meta['iter'] < 5 * 7  # five epochs of 200 images, some of them Ticks on half
    assert run.history[-1]['iter'] == meta['iter'] and run.progress() == (5, 5, 'epochs')


@pytest.mark.slow
def test_without_validation_the_page_says_so(finished, tmp_path):
    run = shutil.copytree(finished('gdp-scenes')[0], tmp_path / 'run')
    for path in run.glob('*/vis_data/scalars.json'):
        path.write_text(''.join(line for line in path.open() if 'mIoU' not in line))
    page, pictures = reported(run, tmp_path / 'out')
    assert 'no validation on record' in page.text and 'losses' in pictures and 'mIoU' not in page.text


@pytest.fixture(scope='module')
def killed(tmp_path_factory, tiny_config):
    """(config, work directory) of a run that was killed in its eighth iteration; the last line of gates is cut."""
    folder = tmp_path_factory.mktemp('killed')
    config = scenes_config(tiny_config, folder, 'gbn', **{'default_hooks.checkpoint.interval': 3})
    config.custom_hooks[1] = {**RECORD, 'interval': 1}
    config.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=False)
    doomed = config.copy()
    doomed.custom_hooks = [*config.custom_hooks, dict(type='mmengine.Killed', at=8)]
    with pytest.raises(InterruptedError):
        train(doomed)
    history = folder / 'gates.jsonl'
    history.write_text(history.read_text()[:-40])
    return config, folder


@pytest.mark.slow
def test_a_killed_run_shows_what_is_whole(killed, tmp_path):
    _, folder = killed
    assert [line['iter'] for line in read_history(folder / 'gates.jsonl')] == list(range(1, 8))
    page, pictures = reported(folder, tmp_path / 'out')
    assert pictures == set(PICTURES)
    assert 'the run did not reach its end: 8 of 14 iterations are on record' in page.text
    for path in folder.glob('*.pth'):
        path.rename(path.with_suffix('.away'))
    page, pictures = reported(folder, tmp_path / 'out')
    for path in folder.glob('*.away'):
        path.rename(path.with_suffix('.pth'))
    assert pictures == set(PICTURES) - {'predictions'} and not (tmp_path / 'out' / 'predictions.png').exists()
    assert f'Predictions: neither a slim model in {folder}/slim nor a checkpoint in {folder}' in page.text
    assert '# no checkpoint yet' in page.text


def test_a_run_with_a_cut_line_resumes_and_every_iteration_is_there_once(killed, tmp_path):
    config, folder = killed
    again = config.copy()
    again.work_dir, again.resume = str(shutil.copytree(folder, tmp_path / 'run')), True
    (tmp_path / 'run' / 'last_checkpoint').write_text(str(tmp_path / 'run' / 'iter_6.pth'))
    again.experiment_name = again.visualizer.name = 'again'
    assert train(again).iter == 14
    run = read_run(tmp_path / 'run')
    assert [line['iter'] for line in run.history] == list(range(1, 15))
    assert [line['iter'] for line in run.train] == list(range(1, 15))
    assert not [doubt for doubt in run.doubts if 'reach its end' in doubt]


def test_the_start_is_that_of_training_whatever_came_later(finished, tmp_path):
    run = shutil.copytree(finished('gdp-scenes')[0], tmp_path / 'run')
    (path,) = run.glob('*.py')
    config = Config.fromfile(path)
    config.load_from = str(run / 'iter_14.pth')  # as test.py leaves it
    config.dump(path)
    page, _ = reported(run, tmp_path / 'out')
    assert 'no checkpoint (load_from is not set)' in page.text and 'load_from=None' in page.text


def test_data_that_is_not_here_leaves_predictions_out(finished, tmp_path):
    source, slim = finished('gdp-scenes')
    run = shutil.copytree(source, tmp_path / 'run')
    for path in run.rglob('*.py'):
        config = Config.fromfile(path)
        config.test_dataloader.dataset.data_root = 'elsewhere/VOC2012'
        config.dump(path)
    page, pictures = reported(run, tmp_path / 'out', '--slim', slim)
    assert pictures == set(PICTURES) - {'predictions'}
    assert 'Predictions: the data set is not here: elsewhere/VOC2012' in page.text


@pytest.mark.slow
def test_a_slim_model_of_another_run_is_noticed(finished, tmp_path):
    page, pictures = reported(finished('gdp-scenes')[0], tmp_path / 'out', '--slim', finished('gbn-digits')[1])
    assert {'layers', 'costs'}.isdisjoint(pictures) and 'Channels kept per layer: slim.json is of another' in page.text
    shutil.copytree(finished('gdp-scenes')[1], tmp_path / 'slim')
    report = json.loads((tmp_path / 'slim' / 'slim.json').read_text())
    report['provenance']['checkpoint_sha256'] = 'f' * 64
    (tmp_path / 'slim' / 'slim.json').write_text(json.dumps(report))
    page, _ = reported(finished('gdp-scenes')[0], tmp_path / 'out', '--slim', tmp_path / 'slim')
    assert 'was made from another checkpoint' in page.text


def test_the_folder_of_a_slim_model_is_no_run(finished, capsys):
    slim = finished('gdp-scenes')[1]
    before = sorted(slim.iterdir())
    assert main([str(slim)]) == 1
    assert 'holds a slim model, not a run: give the work folder of the run' in capsys.readouterr().err
    assert sorted(slim.iterdir()) == before


def test_a_cut_slim_json_and_a_broken_config_are_left_out(finished, tmp_path):
    source, slim = finished('gdp-scenes')
    run = shutil.copytree(source, tmp_path / 'run')
    shutil.copytree(slim, run / 'slim')
    (run / 'slim' / 'slim.json').write_text((slim / 'slim.json').read_text()[:500])
    for path in [*run.glob('*.py'), *run.glob('*/vis_data/*.py')]:
        path.write_text('model = dict(')
    page, pictures = reported(run, tmp_path / 'out')
    assert pictures == {'gates', 'histograms', 'macs', 'losses'}
    assert 'the file was cut or changed: write it again' in page.text and 'cannot be read' in page.text


def test_a_slim_json_edited_by_hand_is_left_out_with_the_key(finished, tmp_path):
    source, slim = finished('gdp-scenes')
    report = json.loads((slim / 'slim.json').read_text())
    name, entry = next(iter(report['groups'].items()))
    size, key = entry['size'], f'groups[{name!r}]'
    latency = {'measured_ms': {'before': 2.0, 'after': 1.0, 'kept': 0.5}, 'target': 0.5}
    check_report(report, 'slim.json')
    check_report({**report, 'latency': latency}, 'slim.json')
    check_report({**report, 'channels': {'before': 0, 'after': 0}}, 'slim.json')  # only blocks are pruned
    bad = [
        *((f'{key}.kept', ('groups', name, 'kept'), value) for value in ([size], [-1, 0], [0, 0], 'a', None, [0.5], 3)),
        *((f'{key}.size', ('groups', name, 'size'), value) for value in (None, 0, -1, 'a', 1.5)),
        *((key, ('groups', name), value) for value in (None, [], 'a', 3)),
        *(
            (part, (part,), value)
            for part in ('groups', 'macs', 'params', 'blocks', 'provenance')
            for value in (None, [])
        ),
        *(('macs.after', ('macs', 'after'), value) for value in (None, 'a', -1, float('nan'), float('inf'))),
        ('macs.before', ('macs', 'before'), 0),
        *(('macs.input_shape', ('macs', 'input_shape'), value) for value in (None, [3, 8], [3, 8, 0], 'abc')),
        *(('parity_error', ('parity_error',), value) for value in (None, 'a', -1)),
        *(('blocks.removed', ('blocks', 'removed'), value) for value in (None, [1], 'a')),
        ('provenance.checkpoint', ('provenance', 'checkpoint'), 3),
        *(('warnings', ('warnings',), value) for value in (None, 'a', [1])),
        *(('latency', ('latency',), value) for value in ([], 'a')),
        ('latency.measured_ms', ('latency',), {'measured_ms': 3}),
        ('latency.measured_ms.after', ('latency',), {'measured_ms': {'before': 2.0}}),
        ('latency.target', ('latency',), {'measured_ms': latency['measured_ms']}),
    ]
    assert len(bad) > 50
    for words, path, value in bad:
        edited = copy.deepcopy(report)
        place = edited
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        with pytest.raises(ValueError, match=re.escape(f'slim.json: {words} must be')):
            check_report(edited, 'slim.json')
    shutil.copytree(slim, tmp_path / 'slim')
    (tmp_path / 'slim' / 'slim.json').write_text('[]')
    page, pictures = reported(source, tmp_path / 'out', '--slim', tmp_path / 'slim')
    assert 'gates' in pictures and 'slim.json must be a dictionary' in page.text


def test_the_target_of_a_cost_named_in_full(finished):
    run = read_run(finished('gdp-scenes')[0])
    hook = run.config.custom_hooks[0]
    target = run.target
    hook.cost = dict(type='mmprune_gates.MACs')
    assert run.target == target is not None
    hook.cost = dict(type='mmprune_gates.Parameters')
    assert run.target is None


def test_what_is_left_out_is_also_printed(finished, tmp_path, capsys):
    reported(finished('gdp-digits')[0], tmp_path / 'out')
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(':')[1].strip() for line in lines if line.startswith('left out')] == [
        *('Slim model', 'Gates over time', 'Gates at start, middle and end'),
        *('Channels kept per layer', 'MACs per stage', 'Residual blocks gone'),
    ]
    assert lines[-1] == f'{tmp_path}/out/index.html written'


@pytest.mark.parametrize(('method', 'own'), [('gdp', 'gate_eps'), ('gbn', 'ticks')])
def test_tensorboard_gets_the_scalars_and_the_last_histogram(tiny_config, tmp_path, method, own):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = scenes_config(tiny_config, tmp_path, method)
    config.visualizer.vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
    train(config)
    (folder,) = tmp_path.glob('*/vis_data')
    events = EventAccumulator(str(folder)).Reload()
    assert {'loss', 'macs_ratio', 'gates_closed', own} <= set(events.Tags()['scalars'])
    lines = map(json.loads, (folder / 'scalars.json').read_text().splitlines())
    expected = {line['step']: line['macs_ratio'] for line in lines if 'macs_ratio' in line}
    found = {event.step: event.value for event in events.Scalars('macs_ratio')}
    assert len(found) == 14 and found == pytest.approx(expected)
    (image,) = events.Images('gates')
    with Image.open(io.BytesIO(image.encoded_image_string)) as picture:
        assert image.step == 14 and picture.mode == 'RGB'
        assert min(picture.size) > 200 and np.ptp(np.asarray(picture)) > 100
