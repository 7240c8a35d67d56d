"""Parts of configs that runs on several ranks import by name."""

import os
from contextlib import contextmanager

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, OPTIM_WRAPPERS

from mmprune_gates.engine.running import unwrapped


@OPTIM_WRAPPERS.register_module()
class BFloat16Wrapper(OptimWrapper):
    """Mixed precision on the CPU; mmengine's own wrapper asks for a GPU."""

    @contextmanager
    def optim_context(self, model):
        """Forward in bfloat16 where autocast sees fit."""
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield


@HOOKS.register_module()
class SaveRank(Hook):
    """Saves what every rank has in the end."""

    priority = 'LOWEST'

    def after_train(self, runner):
        """Model and pruner of this rank."""
        pruner = next(hook.pruner for hook in runner.hooks if hasattr(hook, 'pruner'))
        local_rank = int(os.environ['LOCAL_RANK'])
        state = {'model': unwrapped(runner).state_dict(), 'pruner': pruner.state_dict(), 'local_rank': local_rank}
        torch.save(state, f'{runner.work_dir}/rank_{get_rank()}.pth')


@HOOKS.register_module()
class DriftApart(Hook):
    """Lets one rank close a gate that the other does not."""

    priority = 'HIGH'

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        """In the fourth iteration."""
        if runner.iter == 3 and get_rank() == 1:
            gate = next(iter(unwrapped(runner).gates.by_group.values()))
            gate.theta.data.mul_(0.1)
