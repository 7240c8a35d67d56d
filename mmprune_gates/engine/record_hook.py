"""Keep the history of the gates of a run, for pictures and reports."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook

from mmprune_gates.checks import COUNT, checked
from mmprune_gates.engine.files import write_text
from mmprune_gates.engine.registry import HOOKS
from mmprune_gates.engine.running import unwrapped
from mmprune_gates.gates import gates_of

BINS = 20


@HOOKS.register_module()
class GateRecordHook(Hook):
    """Appends one line of JSON per ``interval`` iterations to ``gates.jsonl`` in the work directory.

    Each line has ``iter``, ``histogram`` (counts of gate values in 20 equal bins over [0, 1]; exact zeros are
    counted apart, in ``closed``), and ``open`` (group name -> channels whose gate is not exactly 0).

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
        lines = path.read_text(errors='replace').splitlines() if path.exists() and runner.iter > 0 else []
        kept = [line for line in lines if is_until(line, runner.iter)]
        write_text(path, ''.join(f'{line}\n' for line in kept))

    @master_only
    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Append a line if it is time."""
        if not self.every_n_train_iters(runner, self.interval) and runner.iter + 1 != runner.max_iters:
            return
        value = gates_of(unwrapped(runner)).values()
        free = torch.cat(list(value.values())).float().cpu()
        line = {
            'iter': runner.iter + 1,
            'closed': int((free == 0).sum()),
            'histogram': torch.histc(free[free != 0].clamp(0, 1), BINS, 0, 1).long().tolist(),
            'open': {name: int((own != 0).sum()) for name, own in value.items()},
        }
        with self.path(runner).open('a') as file:
            file.write(json.dumps(line) + '\n')

    @staticmethod
    def path(runner) -> Path:
        """Where the history of a run is."""
        return Path(runner.work_dir) / 'gates.jsonl'


def is_until(line: str, last: int) -> bool:
    """Whether a line is whole, and of an iteration up to ``last``: a run that was killed may leave half a line."""
    try:
        return json.loads(line)['iter'] <= last
    except (ValueError, LookupError, TypeError):
        return False
