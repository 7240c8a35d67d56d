"""All measurements of one stock model; run by ``tools/dev/zoo.py`` in a process of its own.

Weights are random, in float64, where rounding does not matter (float32 where a model's code demands it). Inference and
training passes are compared: ``training_forward`` computes, in evaluation mode, what ``inference_forward`` does and the
auxiliary heads; in training mode (dropout and drop path off), also what only training reaches, with batch statistics.

A model is of kind ``transformer`` if a module attends over tokens: it is an ``nn.MultiheadAttention``, or its class
name says Attention, Attn, MSA or XCA and it has linear layers. Channel and large-kernel attention (SE, split
attention, SegNeXt, VAN) and non-local heads consist of convolutions and do not count. ``mlp``: no attention, and no
convolution whose windows overlap.
"""

from __future__ import annotations

import copy
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmprune_gates import cli  # cures come before the imports below

# isort: split
import torch
from mmengine.config import ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from model_checks import example, random_kept, randomize_, relative_error
from torch import Tensor, nn
from zoo_select import count, last_line, load_model_config
from zoo_steps import default_dtype, loss_step, outputs, timed_export

from mmprune_gates import masked_copy
from mmprune_gates.channels import ChannelGraph
from mmprune_gates.engine.builders import trace
from mmprune_gates.engine.model_config import slim_config
from mmprune_gates.gates import PolarizationGate, attach_gates
from mmprune_gates.slimming import slim_model

ATTENTION = re.compile(r'Attention|Attn|MSA|XCA')
SEGMENTOR_SIDES = (64, 128)
CLASSIFIER_SIDES = (224, 32, 256, 384, 299)
# Stage -> the stages whose results it uses.
STAGES = {
    'build': (),
    'run': ('build',),
    'stock': ('build',),
    'trace': ('run',),
    'gates': ('trace',),
    'slim': ('trace',),
    'rebuild': ('slim',),
    'blocks': ('slim',),
    'training mode': ('slim',),
    'train': ('slim', 'stock'),
}


def measure(probe: Probe, out: Path, stages: Mapping[str, Sequence[str]] = STAGES) -> None:
    """Run every stage of a model's measurement, writing the results so far after each."""
    failures = probe.record['failures']
    for stage, needs in stages.items():
        if any(need in failures for need in needs):
            failures[stage] = 'skipped'
            continue
        probe.record['running'] = stage
        cli.write_json(out, probe.record)
        begin = time.perf_counter()
        try:
            getattr(probe, stage.replace(' ', '_'))()
        except Exception as error:  # a sweep records whatever goes wrong
            failures[stage] = last_line(error)
        probe.record['seconds'][stage] = round(time.perf_counter() - begin, 2)
    probe.record['failures'] = {stage: text for stage, text in failures.items() if text != 'skipped'}
    del probe.record['running']
    cli.write_json(out, probe.record)


class Probe:
    """One model on its way through the stages; each stage is a method.

    Attributes:
        record: Results so far, ready for JSON.
    """

    def __init__(self, scope: str, path: str, attention: str = 'heads') -> None:
        self.scope, self.attention = scope, attention
        self.record: dict[str, Any] = {'config': path, 'failures': {}, 'seconds': {}}
        self.config: ConfigDict = None
        self.model: nn.Module = None  # float32, random weights
        self.whole: nn.Module = None  # the same in `dtype`
        self.dtype = torch.float64
        self.graph: ChannelGraph = None
        self.slimmed: nn.Module = None
        self.kept: dict[str, Tensor] = {}
        self.spec: dict[str, Any] = {}
        self.expected: list[Tensor] = []

    def build(self) -> None:
        """The stock model with random weights."""
        init_default_scope(self.scope)
        torch.manual_seed(0)
        self.config = load_model_config(self.scope, self.record['config'])
        self.model = randomize_(self.fresh(self.config)).eval()
        self.record.update(kind=kind(self.model), params=count(self.model))

    def run(self) -> None:
        """Find the first input shape that the passes to be traced accept, and the precision in which the model runs."""
        self.choose_shape(lambda shape: outputs(self.model, example(shape, 1, torch.float32)))
        self.whole = copy.deepcopy(self.model).double()
        try:
            with default_dtype(self.dtype):
                outputs(self.whole, self.inputs())
        except RuntimeError:  # float32 is written in its code
            self.whole, self.dtype = copy.deepcopy(self.model), torch.float32
        self.record['dtype'] = str(self.dtype).removeprefix('torch.')

    def stock(self) -> None:
        """Check that the stock model trains, at that shape or at one further down the list."""
        self.choose_shape(lambda shape: loss_step(copy.deepcopy(self.model), self.config, shape))

    def choose_shape(self, attempt: Callable[[tuple], Any]) -> None:
        """Record the first shape with which an attempt succeeds, starting at the one recorded before.

        Raises:
            Exception: All attempts failed; the error of the first one.
        """
        candidates, error = shapes(self.config), None
        start = candidates.index(tuple(self.record.get('shape', candidates[0])))
        for shape in candidates[start:]:
            try:
                attempt(shape)
            except (RuntimeError, AssertionError, ValueError, TypeError) as refused:
                error = error or refused
            else:
                self.record['shape'] = list(shape)
                return
        raise error

    def trace(self) -> None:
        """Trace the channel graph; record how long that took, and the coverage."""
        spent: list[float] = []
        begin = time.perf_counter()
        with timed_export(spent):
            try:
                self.graph = trace(self.model, self.record['shape'], 'both', self.attention)
            finally:
                self.record.update(trace_s=round(time.perf_counter() - begin, 2), export_s=round(sum(spent), 2))
        self.record.update(covered(self.graph))

    def gates(self) -> None:
        """Record how far fresh gates change the output, which they should not."""
        gated = copy.deepcopy(self.whole)
        if not self.graph.free:
            raise ValueError('no channel can be pruned')
        with default_dtype(self.dtype):
            attach_gates(gated, self.graph, PolarizationGate)
            gated.to(self.dtype)
            self.expected = outputs(self.whole, self.inputs())
            self.record['gate_error'] = relative_error(outputs(gated, self.inputs()), self.expected)

    def slim(self) -> None:
        """Compare the slim model with the masked one, and the masked one with the whole one."""
        if not self.graph.free:
            raise ValueError('no channel can be pruned')
        self.kept = random_kept(self.graph, share=None)
        slimmed = copy.deepcopy(self.whole)
        self.spec = slim_model(slimmed, self.graph, self.kept)
        self.record['macs_kept'] = self.graph.macs(self.kept) / max(1, self.graph.macs())
        with default_dtype(self.dtype):
            whole = self.expected or outputs(self.whole, self.inputs())
            self.expected = outputs(masked_copy(self.whole, self.graph, self.kept), self.inputs())
            self.record['removal_distance'] = relative_error(self.expected, whole)
            self.record['slim_error'] = relative_error(outputs(slimmed, self.inputs()), self.expected)
        self.slimmed = slimmed

    def rebuild(self) -> None:
        """Rebuild the slim model from its config, load its weights, and compare it with the masked one.

        Raises:
            ValueError: Keys are missing or unexpected, other than those that the stock model itself does not load.
        """
        spec = json.loads(json.dumps(self.spec))
        rebuilt = self.fresh(ConfigDict(slim_config(self.config, **spec))).to(self.dtype)
        refused = set(self.fresh(self.config).load_state_dict(self.model.state_dict(), strict=False).missing_keys)
        loaded = rebuilt.load_state_dict(self.slimmed.state_dict(), strict=False)
        if wrong := {*loaded.missing_keys, *loaded.unexpected_keys} - refused:
            raise ValueError(f'missing or unexpected keys: {", ".join(sorted(wrong)[:3])}')
        if refused:
            self.record['notes'] = [f'the stock model does not load {len(refused)} keys of its own state dict']
        with default_dtype(self.dtype):
            self.record['rebuilt_error'] = relative_error(outputs(rebuilt, self.inputs()), self.expected)

    def blocks(self) -> None:
        """Close a third of the residual blocks by their gates, empty another third where possible, and compare."""
        kept = dict(self.kept)
        for number, block in enumerate(self.graph.blocks):
            if number % 3 == 0:
                kept[block.name] = torch.zeros(1)
            elif number % 3 == 1 and block.last:
                kept[block.last] = torch.zeros(self.graph.group(block.last).size)
        if self.graph.blocks:
            slimmed = copy.deepcopy(self.whole)
            slim_model(slimmed, self.graph, kept)
            with default_dtype(self.dtype):
                expected = outputs(masked_copy(self.whole, self.graph, kept), self.inputs())
                self.record['block_error'] = relative_error(outputs(slimmed, self.inputs()), expected)

    def training_mode(self) -> None:
        """Compare the slim model with the masked one in training mode."""
        with default_dtype(self.dtype):
            expected = outputs(masked_copy(self.whole, self.graph, self.kept), self.inputs(2), training=True)
            found = outputs(copy.deepcopy(self.slimmed), self.inputs(2), training=True)
            self.record['training_error'] = relative_error(found, expected)

    def train(self) -> None:
        """Compute one loss and its gradients in float32, as the last stage: the other models are freed."""
        self.model = self.whole = None
        self.record['loss'] = loss_step(self.slimmed.float(), self.config, self.record['shape'])

    def inputs(self, batch: int = 1) -> Tensor:
        """(N, C, H, W) random images."""
        return example(self.record['shape'], batch, self.dtype)

    @staticmethod
    def fresh(config: ConfigDict) -> nn.Module:
        """A model from its config, in evaluation mode, without SyncBN."""
        return revert_sync_batchnorm(MODELS.build(copy.deepcopy(config))).eval()


def shapes(config: ConfigDict) -> list[tuple[int, int, int]]:
    """Input shapes to try: for segmentors, small ones before the config's own; for classifiers, its own first."""
    backbone = config.get('backbone') or {}
    channels = backbone.get('in_channels', 3)
    channels = channels if isinstance(channels, int) else 3
    preprocessor = config.get('data_preprocessor') or {}
    own = [size for size in (backbone.get('img_size'), preprocessor.get('size')) if size]
    own = [(size, size) if isinstance(size, int) else tuple(size) for size in own]
    if config.get('decode_head'):
        sizes = [(side, side) for side in SEGMENTOR_SIDES] + own + [(512, 512)]
    else:
        sizes = own + [(side, side) for side in CLASSIFIER_SIDES]
    shapes = [(channels, *size) for size in sizes] + [(1, 32, 32)] * (not config.get('decode_head'))
    return list(dict.fromkeys(shapes))


def kind(model: nn.Module) -> str:
    """``transformer``, ``mlp`` or ``convolutional``, as defined above."""
    if any(attends(module) for module in model.modules()):
        return 'transformer'
    convs = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))]
    overlapping = any(max(conv.kernel_size) > max(conv.stride) for conv in convs)
    return 'convolutional' if overlapping else 'mlp'


def attends(module: nn.Module) -> bool:
    """Whether a module attends over tokens, by its class and its parts."""
    if isinstance(module, nn.MultiheadAttention):
        return True
    named = ATTENTION.search(type(module).__name__)
    return bool(named) and any(isinstance(part, nn.Linear) for part in module.modules())


def covered(graph: ChannelGraph) -> dict[str, Any]:
    """Groups, MACs, and the reasons for frozen channels, each with the share of MACs of the layers concerned."""
    total = graph.macs()
    channels, macs = Counter(), Counter()
    for group in graph.groups:
        if group.frozen:
            channels[group.frozen] += group.size
    for layer in graph.layers:
        if not layer.prunable:
            macs[layer.out_frozen] += layer.macs
    reasons = sorted(channels | macs, key=lambda reason: (-macs[reason], -channels[reason]))
    return {
        'macs': total,
        'prunable_share': graph.prunable_macs() / total if total else 0.0,
        'groups': len(graph.channel_groups),
        'free_groups': len(graph.free_channels),
        'blocks': len(graph.blocks),
        'full_width': len(graph.full_width),
        'frozen': [
            {'reason': reason, 'channels': channels[reason], 'macs_share': macs[reason] / max(1, total)}
            for reason in reasons
        ],
    }
