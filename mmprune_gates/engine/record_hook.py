"""Records the history of a run's gates, for pictures and reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook

from mmprune_gates.checks import COUNT, checked, is_whole
from mmprune_gates.engine.files import read_lines, write_text
from mmprune_gates.engine.gate_picture import histograms, pixels
from mmprune_gates.engine.registry import HOOKS
from mmprune_gates.engine.running import unwrapped
from mmprune_gates.gates import gates_of

BINS = 20
NAME = 'gates.jsonl'  # in the work directory
KEYS = {'iter', 'closed', 'histogram', 'open'}


def read_history(path: str | Path) -> list[dict[str, Any]]:
    """The complete lines of a history; in a killed run the last may be cut. Empty if there is no file."""
    lines = read_lines(path) if Path(path).is_file() else []
    return [line for line in lines if KEYS <= line.keys() and is_whole(line['iter'])]


@HOOKS.register_module()
class GateRecordHook(Hook):
    """Appends one line of JSON per ``interval`` iterations to ``gates.jsonl`` in the work directory.

    Each line has ``iter``, ``histogram`` (counts of gate values in 20 equal bins over [0, 1]; exact zeros are
    counted in ``closed`` instead), and ``open`` (group name -> channels whose gate is not exactly 0). When training
    ends, the last histogram also goes as an image, ``gates``, to the backends of the run's visualizer.

    Args:
        interval: Iterations between two lines; the last iteration always has one.
    """

    priority = 'LOW'  # after the gates have moved

    def __init__(self, interval: int = 50) -> None:
        self.interval = checked('GateRecordHook: interval', interval, COUNT)

    @master_only
    def before_train(self, runner) -> None:
        """Start a new file, or cut one back to where the run resumes."""
        path = self.path(runner)
        lines = read_history(path) if runner.iter > 0 else []
        kept = [json.dumps(line) + '\n' for line in lines if line['iter'] <= runner.iter]
        write_text(path, ''.join(kept))

    @master_only
    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Append a line if one is due."""
        if self.every_n_train_iters(runner, self.interval) or runner.iter + 1 == runner.max_iters:
            self.append(runner, runner.iter + 1)

    @master_only
    def after_train(self, runner) -> None:
        """Make sure that the last iteration has a line, and pass its histogram to the visualizer."""
        history = read_history(self.path(runner))
        if not history or history[-1]['iter'] < runner.iter:  # epochs can be shorter than expected
            history.append(self.append(runner, runner.iter))
        runner.visualizer.add_image('gates', pixels(histograms(history[-1:])), runner.iter)

    def append(self, runner, iteration: int) -> dict[str, Any]:
        """Append a line for the current gates, after a number of iterations; returns it."""
        gates = gates_of(unwrapped(runner))
        value = gates.values()
        free = torch.cat([torch.zeros(0), *(own.detach().float().cpu() for own in value.values())])
        opened = {group.name: 0 for group in gates.whole.free}  # channels that have left the model were closed
        opened.update({name: int((own != 0).sum()) for name, own in value.items()})
        line = {
            'iter': iteration,
            'closed': sum(group.size for group in gates.whole.free) - int((free != 0).sum()),
            'histogram': torch.histc(free[free != 0].clamp(0, 1), BINS, 0, 1).long().tolist(),
            'open': opened,
        }
        with self.path(runner).open('a') as file:
            file.write(json.dumps(line) + '\n')
        return line

    @staticmethod
    def path(runner) -> Path:
        """The file of a run's history."""
        return Path(runner.work_dir) / NAME
