"""A run that is killed, at any moment and again and again, ends as one that was not."""

import json
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import onnx
import pytest
import torch
from helpers import assert_same, environment_with, repeatable
from mmengine.config import Config

from mmprune_gates.engine.product import WHOLE, prepare_folder

ROOT = Path(__file__).parents[1]
GDP, GBN = 'demo/gdp_deeplabv3plus_scenes.py', 'demo/gbn_deeplabv3plus_scenes.py'
METHODS = {
    'waterline': (GDP, dict(steps=3, target_macs=0.4)),
    'gradient': (GDP, dict(update='gradient', target_macs=0.4)),
    'gate decorator': (GBN, dict(tick=3, tock=2, ticks=2, fraction=0.08, target_macs=0.4, by_epoch=False, subset=0.5)),
}
ITERATIONS, EPOCHS, KILLS = 40, 7, 10

pytestmark = pytest.mark.slow


def make_config(tiny_config, folder, method):
    """A run with a checkpoint every other iteration, the same data after a resume, and a history of its gates."""
    base, hook = METHODS[method]
    config = tiny_config(folder, base, ITERATIONS)
    config.randomness = dict(seed=0)
    config.default_hooks.checkpoint.update(interval=2, max_keep_ckpts=3, save_optimizer=True)
    config.train_dataloader.update(num_workers=0, persistent_workers=False)
    repeatable(config)
    own = config.custom_hooks[0]
    for key in ('steps', 'tick', 'tock', 'update'):
        own.pop(key, None)
    own.update(hook, shrink=True)
    config.custom_hooks = [own, dict(type='mmprune_gates.GateRecordHook', interval=3)]
    path = Path(folder) / 'run.py'
    path.parent.mkdir(parents=True, exist_ok=True)
    config.dump(path)
    return path


def start(tool, *arguments):
    """One of our tools as a process of its own."""
    command = [sys.executable, '-W', 'ignore', ROOT / 'tools' / tool, *arguments]
    environment = environment_with(OMP_NUM_THREADS='1')
    return subprocess.Popen(
        [str(part) for part in command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finished(process):
    """What a process printed, if it ended well."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    return output


def times_of(folder):
    """When each checkpoint was written, partial ones as well; one may go while this looks."""
    found = {}
    for path in folder.glob('*.pth*'):
        with suppress(FileNotFoundError):
            found[path] = path.stat().st_mtime_ns
    return found


def wait_for_change(folder, before, process):
    """Wait until a checkpoint begins to be written, or the process ends."""
    while process.poll() is None:
        if times_of(folder) != before:
            return
        time.sleep(0.001)


def kill_while_running(process, folder, chance):
    """Kill a training at a random moment: while it starts, works, or writes a checkpoint. Whether it was alive."""
    before = times_of(folder)
    if chance.random() < 0.5:
        wait_for_change(folder, before, process)
        time.sleep(chance.uniform(0, 0.02))
    else:
        for line in process.stdout:
            if '(train)' in line:
                break
        time.sleep(chance.uniform(0, 0.3))
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return alive


def last_state(folder, name=f'iter_{ITERATIONS}.pth'):
    """The last checkpoint's contents, without what tells the time."""
    checkpoint = torch.load(folder / name, weights_only=True)
    return {key: checkpoint[key] for key in ('state_dict', 'mmprune_gates')} | {
        'optimizer': checkpoint['optimizer']['state'],
        'rates': [group['lr'] for group in checkpoint['optimizer']['param_groups']],
    }


@pytest.mark.parametrize('method', METHODS)
def test_ten_kills_change_nothing(tiny_config, tmp_path, method):
    config = make_config(tiny_config, tmp_path / 'config', method)
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    finished(start('train.py', config, '--work-dir', whole))
    chance, kills = random.Random(method), 0
    killed.mkdir()
    while kills < KILLS and not (killed / f'iter_{ITERATIONS}.pth').exists():
        kills += kill_while_running(start('train.py', config, '--work-dir', killed, '--resume'), killed, chance)
    finished(start('train.py', config, '--work-dir', killed, '--resume'))
    assert kills >= 3
    assert not [path for path in killed.iterdir() if path.name.startswith('.')]
    assert_same(last_state(killed), last_state(whole))
    expected, found = ((folder / 'gates.jsonl').read_text() for folder in (whole, killed))
    assert found == expected and json.loads(expected.splitlines()[-1])['iter'] == ITERATIONS


@pytest.mark.parametrize('method', ['waterline', 'gate decorator'])
def test_kills_change_nothing_where_the_loop_goes_by_epochs(tiny_config, tmp_path, method):
    path = make_config(tiny_config, tmp_path / 'config', method)
    config = Config.fromfile(path)
    config.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=EPOCHS, val_interval=100)
    config.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=True)
    config.default_hooks.checkpoint.update(by_epoch=True, interval=1)
    if method == 'gate decorator':
        config.custom_hooks[0].update(by_epoch=True, tick=1, tock=1)
    config.dump(path)
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    finished(start('train.py', path, '--work-dir', whole))
    chance, kills = random.Random(method), 0
    killed.mkdir()
    while kills < 4 and not (killed / f'epoch_{EPOCHS}.pth').exists():
        kills += kill_while_running(start('train.py', path, '--work-dir', killed, '--resume'), killed, chance)
    finished(start('train.py', path, '--work-dir', killed, '--resume'))
    assert kills >= 2
    expected, found = (last_state(folder, f'epoch_{EPOCHS}.pth') for folder in (whole, killed))
    assert_same(found, expected)
    assert (killed / 'gates.jsonl').read_text() == (whole / 'gates.jsonl').read_text()


def test_a_killed_export_leaves_no_file_or_a_whole_one(tiny_config, tmp_path):
    config = make_config(tiny_config, tmp_path / 'config', 'waterline')
    work, out, file = tmp_path / 'work', tmp_path / 'slim', tmp_path / 'onnx' / 'net.onnx'
    finished(start('train.py', config, '--work-dir', work))
    finished(start('slim.py', config, work / f'iter_{ITERATIONS}.pth', out))
    file.parent.mkdir()
    kills = 0
    for delay in (0, 0.0005, 0.002):
        process = start('export_onnx.py', out / 'slim.py', out / 'slim.pth', file)
        while process.poll() is None and not list(file.parent.iterdir()):
            time.sleep(0.0002)
        time.sleep(delay)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if file.exists():
            onnx.checker.check_model(str(file))
            file.unlink()
    assert kills >= 1
    finished(start('export_onnx.py', out / 'slim.py', out / 'slim.pth', file))
    onnx.checker.check_model(str(file))


def test_a_killed_slim_leaves_the_old_product_or_a_whole_new_one(tiny_config, tmp_path):
    config = make_config(tiny_config, tmp_path / 'config', 'waterline')
    work, out = tmp_path / 'work', tmp_path / 'slim'
    finished(start('train.py', config, '--work-dir', work))
    checkpoints = [work / f'iter_{number}.pth' for number in (ITERATIONS - 2, ITERATIONS)]
    products = []
    for checkpoint in checkpoints:
        finished(start('slim.py', config, checkpoint, out))
        products.append(files_in(out))
        assert set(products[-1]) == {'slim.py', 'slim.pth', 'slim.json'}
    assert products[0]['slim.pth'] != products[1]['slim.pth']
    chance, kills = random.Random(0), 0
    for number in range(KILLS // 2):
        prepare_folder(out)  # without what the last one has left, the first sign of writing is this one's
        process = start('slim.py', config, checkpoints[number % 2], out)
        while process.poll() is None and not list(out.glob('.slim-*')):
            time.sleep(0.0002)
        time.sleep(chance.uniform(0, 0.004))  # it writes for some milliseconds
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if not (out / WHOLE).exists():  # else the next run puts the rest in place before anything else
            assert files_in(out) in products
        assert set(files_in(out)) == set(products[0])
    assert kills >= 2
    finished(start('slim.py', config, checkpoints[1], out))
    assert files_in(out) == products[1] and not list(out.glob('.slim-*'))


def files_in(folder):
    """Name -> contents of the files of a product."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
