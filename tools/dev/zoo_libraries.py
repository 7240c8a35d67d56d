"""Coverage of model libraries unrelated to OpenMMLab: trace, prune, slim, compare.

    python tools/dev/zoo_libraries.py torchvision --out-dir DIR          # DIR/torchvision.json; resumes where it ended
    python tools/dev/zoo_libraries.py --out-dir DIR --write docs/zoo.md  # that page's last section, and JSON beside it

Models are built with random weights, a random 30 to 50 % of every free group are removed, and the slim model is
compared with the masked one in float64. The libraries (torchvision, timm, segmentation_models_pytorch, transformers)
are no dependencies of this project: install those to be measured.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from model_checks import random_kept, randomize_, relative_error
from torch import nn

from mmprune_gates import cli, masked_copy, slim_model
from mmprune_gates.channels import read_graph
from mmprune_gates.channels.calls import Inputs, Options, call_options, run
from mmprune_gates.slimming.rehearsal import rehearse

INTRODUCTION = """
Written by `python tools/dev/zoo_libraries.py --out-dir DIR --write docs/zoo.md`; the sweep is
`python tools/dev/zoo_libraries.py LIBRARY --out-dir DIR`. These models have nothing to do with OpenMMLab; they are
traced by `trace_channels(model, inputs)` and nothing else. They are all classifiers and segmentors of torchvision, of
each of timm's modules the first model by name with at most 60 M parameters, all architectures of
segmentation_models_pytorch with three encoders, and vision models of transformers. Weights are random; a random 30 to
50 % of the channels of every free group go; slim and masked model are compared in float64, to 1e-5. *Rehearsal*: its
processor time relative to the rest of the trace, median and worst of the models of which it froze nothing, then of all.
Every value: [zoo_libraries.json](zoo_libraries.json).
"""
MOST_PARAMETERS = 60e6  # of a timm model; torchvision's are all measured
SECTION = '## Other libraries'  # of the page; what comes before it is tools/dev/zoo.py's
EXACT = 1e-5
GAP = 'its rule cannot handle'
Entry = tuple[str, Callable[[], nn.Module], Callable[[nn.Module], Inputs]]


def images(side: int = 224) -> Callable[[nn.Module], torch.Tensor]:
    """A function that makes a random image of a given side, for any model."""
    return lambda model: torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))


def torchvision_models() -> Iterator[Entry]:
    """All of torchvision's classifiers and segmentors."""
    from torchvision import models

    for name in models.list_models(module=models):
        side = 299 if 'inception' in name else 224 if 'vit' in name or 'swin' in name else 128
        yield name, lambda name=name: models.get_model(name, weights=None), images(side)
    for name in models.list_models(module=models.segmentation):
        yield name, lambda name=name: models.get_model(name, weights=None, weights_backbone=None), images(128)


def timm_models() -> Iterator[Entry]:
    """From each of timm's modules, the first model by name that is not too large."""
    import timm

    def size(model: nn.Module) -> torch.Tensor:
        return images(model.default_cfg['input_size'][-1])(model)

    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            with torch.device('meta'):
                count = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
            if count <= MOST_PARAMETERS:
                yield f'{module}/{name}', lambda name=name: timm.create_model(name), size
                break


def smp_models() -> Iterator[Entry]:
    """All architectures of segmentation_models_pytorch, with three encoders."""
    import segmentation_models_pytorch as smp

    encoders = ('resnet18', 'mobilenet_v2', 'efficientnet-b0')
    for architecture in smp.MODEL_ARCHITECTURES_MAPPING:
        for encoder in ('tu-vit_tiny_patch16_224.augreg_in21k',) if architecture == 'dpt' else encoders:
            yield (
                f'{architecture}/{encoder}',
                lambda a=architecture, e=encoder: smp.create_model(a, e, encoder_weights=None),
                images(224 if architecture == 'dpt' else 128),
            )


def transformers_models() -> Iterator[Entry]:
    """Vision models of transformers, whose outputs are dataclasses and whose inputs are keywords."""
    import transformers

    names = (
        'ResNet RegNet ConvNext ConvNextV2 MobileNetV1 MobileNetV2 EfficientNet Segformer ViT DeiT Swin PoolFormer Cvt'
    )
    for name in names.split():
        config = getattr(transformers, f'{name}Config')
        model = getattr(transformers, f'{name}ForImageClassification')
        yield name, lambda c=config, m=model: m(c()), lambda model: {'pixel_values': images()(model)}


LIBRARIES = {
    'torchvision': torchvision_models,
    'timm': timm_models,
    'segmentation_models_pytorch': smp_models,
    'transformers': transformers_models,
}


@cli.reports_errors
def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = cli.plain_parser(__doc__)
    parser.add_argument('library', nargs='?', choices=LIBRARIES, help='whose models are measured')
    parser.add_argument('--out-dir', type=Path, required=True, help='folder of the results')
    parser.add_argument('--write', type=Path, metavar='PAGE', help='write the section; measure nothing')
    args = parser.parse_args(argv)
    if args.write:
        paths = [args.out_dir / f'{library}.json' for library in LIBRARIES]
        found = {path.stem: cli.read_json(path) for path in paths if path.is_file()}
        before = args.write.read_text().partition(SECTION)[0].rstrip()
        args.write.write_text('\n'.join([before, '', SECTION, '', *table(found)]) + '\n')
        cli.write_json(args.write.with_name('zoo_libraries.json'), found)
    elif args.library is None:
        parser.error('name a library, or --write')
    else:
        sweep(LIBRARIES[args.library](), args.out_dir / f'{args.library}.json')
    return 0


def sweep(entries: Iterator[Entry], out: Path) -> None:
    """Measure every model that has no result yet."""
    results = cli.read_json(out) if out.is_file() else {}
    for name, build, inputs in entries:
        if name not in results:
            results[name] = measure(build, inputs)
            cli.write_json(out, results)
            print(name, results[name], flush=True)


def measure(build: Callable[[], nn.Module], make_inputs: Callable[[nn.Module], Inputs]) -> dict[str, Any]:
    """The results of one model; an error is a result."""
    record: dict[str, Any] = {'stage': 'build'}
    try:
        torch.manual_seed(0)
        model = randomize_(build()).eval()
        inputs = make_inputs(model)
        record['stage'] = 'run'
        outputs(model, call_options(inputs))
        record['stage'] = 'trace'
        begin, options = time.process_time(), call_options(inputs)
        graph = read_graph(model, options)
        read, free = time.process_time(), graph.free
        graph = rehearse(model, graph, (None,), options)
        record['trace_s'], record['rehearsal_s'] = read - begin, time.process_time() - read
        record['rehearsed'] = len(free) - len(graph.free)  # groups that the rehearsal froze
        frozen = [group.frozen for group in graph.groups if group.frozen]
        record['gaps'] = [reason for reason in frozen if GAP in reason]
        record['prunable_share'] = graph.prunable_macs() / max(1, graph.macs())
        record['stage'] = 'slim'
        compare(model.double(), graph, double(options), record)
        record['stage'] = 'done'
    except Exception as error:  # a sweep records whatever goes wrong
        record['error'] = f'{type(error).__name__}: {str(error)[:300]}'
    return record


def compare(model: nn.Module, graph, options: Options, record: dict[str, Any]) -> None:
    """Record the error of the slim model, and how far the masked model is from the whole one; the model is slimmed."""
    torch.set_default_dtype(torch.float64)
    try:
        kept = random_kept(graph, share=None)
        whole, masked = outputs(model, options), outputs(masked_copy(model, graph, kept), options)
        slim_model(model, graph, kept)
        record['error_of_slim'] = relative_error(outputs(model, options), masked)
        record['distance'] = relative_error(masked, whole) if graph.free else 0.0
    finally:
        torch.set_default_dtype(torch.float32)


@torch.no_grad()
def outputs(model: nn.Module, options: Options) -> list[torch.Tensor]:
    """All outputs of a model."""
    torch.manual_seed(0)
    return run(model, None, options)


def double(options: Options) -> Options:
    """Inputs in float64."""
    args, kwargs = options
    return tuple(arg.double() for arg in args), {name: value.double() for name, value in kwargs.items()}


def table(found: dict[str, dict[str, dict]]) -> list[str]:
    """The section's lines: what was done, and a row for each library."""
    lines = [
        INTRODUCTION,
        '| library | models | trace | slim exactly | wrong | raised | ≥ 90 % | rehearsal | worst | of all | worst |',
        '| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |',
    ]
    for library, models in found.items():
        traced = [model for model in models.values() if 'prunable_share' in model]
        exact = [model for model in traced if model.get('error_of_slim', 1) < EXACT]
        wrong = [model for model in traced if model.get('error_of_slim', 0) >= EXACT]
        wide = [model for model in exact if model['prunable_share'] >= 0.9]
        lines.append(
            f'| {library} {version(library)} | {len(models)} | {len(traced)} | {len(exact)} | {len(wrong)} | '
            f'{len(models) - len(exact) - len(wrong)} | {len(wide)} | '
            f'{ratios([model for model in traced if not model["rehearsed"]])} | {ratios(traced)} |'
        )
    failed = {
        f'{library}/{name}': model['error']
        for library, models in found.items()
        for name, model in models.items()
        if 'error' in model
    }
    return [*lines, '', *(f'- {name}: {text}' for name, text in failed.items())]


def ratios(models: list[dict]) -> str:
    """Rehearsal relative to the rest of the trace: median and worst."""
    found = sorted(model['rehearsal_s'] / model['trace_s'] for model in models)
    return f'{found[len(found) // 2]:.2f} | {found[-1]:.2f}' if found else '- | -'


if __name__ == '__main__':
    sys.exit(main())
