"""A slim or dense model as an ONNX file that says what it was pruned from; written only if onnxruntime agrees."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from mmprune_gates.checks import COUNT, IMAGE, checked, optional
from mmprune_gates.engine.builders import inference_model
from mmprune_gates.engine.checkpoint import load_weights, read_checkpoint
from mmprune_gates.engine.files import check_writable, digest, write_bytes
from mmprune_gates.engine.forwards import is_segmentor
from mmprune_gates.engine.model_config import GATED, default_input_shape, model_config_of
from mmprune_gates.engine.onnx_graph import (
    IMAGES,
    LABELS,
    LOGITS,
    Agreement,
    Deployed,
    Proto,
    Shape,
    compare,
    norms_left,
    onnx_of,
    opset_of,
    random_ops,
    require_packages,
    session_of,
)
from mmprune_gates.engine.slim_report import read_report
from mmprune_gates.version import __version__

BATCHES = (1, 3)  # that are compared; the model is traced with 2
FARTHER = 64  # pixels added to the height, and twice to the width, of another size that is compared
TRANSLATED = 'torch.onnx.export'
NORMALISATION = ('mean', 'std', 'bgr_to_rgb', 'rgb_to_bgr', 'to_rgb')  # keys of a data preprocessor

Report = dict[str, Any]


def export_onnx(
    config: Config,
    checkpoint_path: str | Path,
    out: str | Path,
    shape: Sequence[int] | None = None,
    argmax: bool = False,
    dynamic_size: bool = False,
    batch: int | None = None,
) -> Report:
    """Export a segmentor or classifier to ONNX, compare it with onnxruntime, and write it.

    Args:
        config: Config of a slim or dense model.
        checkpoint_path: Its weights.
        out: The file to write.
        shape: (C, H, W) of the images; by default the size that MACs are stated for.
        argmax: Give label maps instead of logits; segmentors only.
        dynamic_size: Let height and width vary.
        batch: Batch size; None for any.

    Returns:
        The file's metadata, and its size in bytes.

    Raises:
        ValueError: The config has gates, the checkpoint does not fit, an op cannot be exported, or outputs differ by
            more than 1e-4 relative, or in more than 0.1 % of the labels; then nothing is written.
        OSError: ``out`` cannot be written.
    """
    require_packages()
    check_writable(out)
    shape = checked('--shape', shape, IMAGE) if shape else default_input_shape(model_config_of(config))
    checked('--batch', batch, optional(COUNT))
    checkpoint = read_checkpoint(checkpoint_path)
    module = deployed(config, checkpoint, checkpoint_path, argmax)
    proto, facts = translated(module, shape, dynamic_size, batch)
    report = {**origin(config, checkpoint, Path(checkpoint_path)), **facts}
    add_metadata(proto, report)
    data = proto.SerializeToString()
    write_bytes(out, data)
    return {**report, 'bytes': len(data)}


def translated(module: Deployed, shape: Sequence[int], dynamic_size: bool, batch: int | None) -> tuple[Any, Report]:
    """A module as an ONNX model, and the result of comparing the two.

    Args:
        module: The module to deploy.
        shape: (C, H, W) of its images.
        dynamic_size: Let height and width vary.
        batch: Batch size; None for any.

    Raises:
        ValueError: An op cannot be exported, or outputs differ too much.
    """
    check_runs(module, shape, batch or 1)
    proto = onnx_of(module, shape, dynamic_size, batch)
    shapes = shapes_to_compare(module, shape, dynamic_size, batch)
    agreement = compare(session_of(proto), module, shapes)
    refuse_unlike(agreement, proto)
    return proto, {**graph_facts(proto, module), **agreement_facts(agreement)}


def deployed(config: Config, checkpoint: dict[str, Any], path: str | Path, argmax: bool) -> Deployed:
    """The model of a config with its weights, ready for translation.

    Args:
        config: Its config.
        checkpoint: Its weights.
        path: File of the weights.
        argmax: Give label maps instead of logits.

    Raises:
        ValueError: The model has gates, the checkpoint does not fit, or there is no label map.
    """
    if config.model.get('type') == GATED:
        raise ValueError(
            f'{config.filename}: the model has gates; run tools/slim.py first, and give the slim.py and slim.pth that '
            'it writes'
        )
    model = inference_model(config)
    load_weights(model, checkpoint, path)
    if argmax and not is_segmentor(model):
        raise ValueError(f'--argmax is for segmentors; {type(model).__name__} has no label map')
    return Deployed(model, argmax)


@torch.no_grad()
def check_runs(module: Deployed, shape: Sequence[int], batch: int) -> None:
    """Check that a model accepts images of a shape.

    Raises:
        ValueError: Its forward fails.
    """
    try:
        module(torch.zeros(batch, *shape))
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(
            f'{type(module.model).__name__} does not take images of shape {tuple(shape)} ({error}); give --shape C H W'
        ) from error


def shapes_to_compare(
    module: Deployed, shape: Sequence[int], dynamic_size: bool, batch: int | None
) -> tuple[Shape, ...]:
    """Shapes of the random images: two batches, of different size if that may vary, and other image sizes if they may.

    One of the other image sizes has an odd height and width, if the model accepts that.
    """
    channels, height, width = shape
    first, second = BATCHES if batch is None else (batch, batch)
    shapes = [(first, channels, height, width), (second, channels, height, width)]
    if dynamic_size:
        shapes.append((first, channels, height + FARTHER, width + 2 * FARTHER))
        odd = (height + height % 2 + 1, width + width % 2 + 5)
        with suppress(ValueError):
            check_runs(module, (channels, *odd), first)
            shapes.append((first, channels, *odd))
    return tuple(shapes)


def refuse_unlike(agreement: Agreement, proto: Proto) -> None:
    """Refuse an ONNX model whose outputs differ from those of the model.

    Raises:
        ValueError: They do.
    """
    if agreement.holds:
        return
    drawing = ', '.join(random_ops(proto))
    if drawing:
        raise ValueError(
            f'the model draws random numbers when it infers ({drawing}), so its ONNX model cannot be compared with it; '
            'nothing was written'
        )
    raise ValueError(
        f'the ONNX model differs from the eager one: {agreement}; nothing was written. Export without --dynamic-size '
        'if you gave it, and please report the config'
    )


def origin(config: Config, checkpoint: Mapping[str, Any], path: Path) -> Report:
    """What an ONNX model was made from, and what it was pruned from if that is known.

    Raises:
        ValueError: The ``slim.json`` beside it is broken.
    """
    found: Report = {
        'mmprune_gates': __version__,
        'config': Path(config.filename or '').name,
        'checkpoint': path.name,
        'checkpoint_sha256': digest(path),
        'architecture': config.model.get('architecture', config.model.type),
    }
    meta = checkpoint.get('meta')
    meta = meta if isinstance(meta, Mapping) else {}
    found.update(meta.get('slim') or {})  # MACs and parameters, before and after
    data = meta.get('dataset_meta') or {}
    found.update({key: data[key] for key in ('classes', 'palette') if data.get(key)})
    slim = path.with_name('slim.json')
    if meta.get('slim') and slim.is_file():
        found['pruned_from'] = read_report(slim)['provenance']
    preprocessor = config.model.get('data_preprocessor') or config.get('data_preprocessor') or {}
    found['preprocessing'] = {key: preprocessor[key] for key in NORMALISATION if preprocessor.get(key) is not None}
    return found


def graph_facts(proto: Proto, module: Deployed) -> Report:
    """Input, output, opset and exporter of an ONNX model."""
    dimensions = proto.graph.input[0].type.tensor_type.shape.dim
    shape = [dimension.dim_param or dimension.dim_value for dimension in dimensions]
    return {
        'input': {'name': IMAGES, 'shape': shape},
        'output': LABELS if module.labels else LOGITS,
        'inference': 'of the whole image; test_cfg (slide, flips) is not part of it',
        'opset': opset_of(proto),
        'exporter': f'{TRANSLATED} {torch.__version__}',
        'simplified': "by the exporter's optimizer (onnxscript): constants folded, norms put into convolutions",
        'norms_left': norms_left(proto),
    }


def agreement_facts(agreement: Agreement) -> Report:
    """Result of the comparison."""
    import onnxruntime

    return {
        'compared_with': f'onnxruntime {onnxruntime.__version__}',
        'compared_shapes': agreement.shapes,
        'relative_error': agreement.error,
        'equal_labels': agreement.equal,
    }


def add_metadata(proto: Proto, report: Report) -> None:
    """Write facts into an ONNX model: text as it is, everything else as JSON."""
    del proto.metadata_props[:]
    for key, value in report.items():
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value)
            proto.metadata_props.add(key=key, value=text)
