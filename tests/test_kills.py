"""A run that is killed, at any moment and again and again, ends as one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from helpers import assert_same, repeatable
from mmengine.config import Config

ROOT = Path(__file__).parents[1]
GDP, GBN = 'demo/gdp_deeplabv3plus_scenes.py', 'demo/gbn_deeplabv3plus_scenes.py'
METHODS = {
    'waterline': (GDP, dict(steps=3, target_macs=0.4)),
    'gradient': (GDP, dict(update='gradient', target_macs=0.4)),
    'gate decorator': (GBN, dict(tick=3, tock=2, ticks=2, fraction=0.08, target_macs=0.4, by_epoch=False, subset=0.5)),
}
ITERATIONS, KILLS = 40, 10

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
    own.update(hook)
    config.custom_hooks = [own, dict(type='mmprune_gates.GateRecordHook', interval=3)]
    path = Path(folder) / 'run.py'
    path.parent.mkdir(parents=True, exist_ok=True)
    config.dump(path)
    return path


def start(tool, *arguments):
    """One of our tools as a process of its own."""
    command = [sys.executable, '-W', 'ignore', ROOT / 'tools' / tool, *arguments]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    return subprocess.Popen(
        [str(part) for part in command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finished(process):
    """What a process printed, if it ended well."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    return output


def times_of(folder):
    """When each checkpoint was written; one may go while this looks."""
    found = {}
    for path in folder.glob('*.pth'):
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
            if 'Iter(train)' in line:
                break
        time.sleep(chance.uniform(0, 0.6))
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return alive


def last_state(folder):
    """The last checkpoint's contents, without what tells the time."""
    checkpoint = torch.load(folder / f'iter_{ITERATIONS}.pth', weights_only=True)
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
    assert_same(last_state(killed), last_state(whole))
    expected, found = ((folder / 'gates.jsonl').read_text() for folder in (whole, killed))
    assert found == expected and json.loads(expected.splitlines()[-1])['iter'] == ITERATIONS


def test_a_killed_slim_leaves_the_old_product_or_a_whole_new_one(tiny_config, tmp_path):
    config = make_config(tiny_config, tmp_path / 'config', 'waterline')
    work, out = tmp_path / 'work', tmp_path / 'slim'
    finished(start('train.py', config, '--work-dir', work))
    arguments = (config, work / f'iter_{ITERATIONS}.pth', out)
    begin = time.monotonic()
    finished(start('slim.py', *arguments))
    seconds = time.monotonic() - begin
    product = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert set(product) == {'slim.py', 'slim.pth', 'slim.json'}
    chance = random.Random(0)
    for number in range(KILLS):
        process = start('slim.py', *arguments)
        time.sleep(seconds * chance.uniform(0.5, 1.0) if number % 2 else seconds * chance.uniform(0.85, 1.0))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if out.exists():
            whole = {path.name for path in out.iterdir() if path.is_file()}
            assert whole == set(product)
            assert torch.load(out / 'slim.pth', weights_only=True)['meta'] and json.loads(
                (out / 'slim.json').read_text()
            )
            Config.fromfile(out / 'slim.py')
    finished(start('slim.py', *arguments))
    assert not list(tmp_path.glob('.slim-*')) and not list(tmp_path.glob('*.slim-*'))
    assert json.loads((out / 'slim.json').read_text())['groups'] == json.loads(product['slim.json'])['groups']
