"""A model as an ONNX graph: captured by ``torch.export``, translated by torch's exporter, compared by onnxruntime.

The exporter's own optimiser (onnxscript) folds constants and puts norms into the convolutions before them.
"""

from __future__ import annotations

import logging
import re
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import Node

from mmprune_gates import compat
from mmprune_gates.channels.calls import Forward
from mmprune_gates.channels.op import module_path
from mmprune_gates.engine.forwards import as_list, is_segmentor, prediction_forward
from mmprune_gates.slimming.parity import relative_error

PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')
LOGGERS = ('onnx_ir', 'onnxscript', 'torch.onnx')
IMAGES, LOGITS, LABELS = 'images', 'logits', 'labels'
DIMENSIONS = {0: 'batch', 2: 'height', 3: 'width'}  # of the images, which may vary
TOLERANCE = 1e-4  # relative error of logits
EQUAL = 0.999  # share of labels
DRAWING = ('Random', 'Bernoulli', 'Multinomial')  # beginnings of the names of operators that draw random numbers
LARGEST = 2**31 - 2**20  # bytes of parameters: no ONNX file holds more than 2 GiB
FIXED = re.compile(r'size\(\)\[(\d)\] as dynamic but your code specialized it to be a constant \((\d+)\)')
UNTRANSLATED = re.compile(r'translating node %(\w+).*?target=(?:torch\.ops\.)?([\w.]+)')

Proto = Any  # onnx.ModelProto
Session = Any  # onnxruntime.InferenceSession
Shape = tuple[int, int, int, int]


class Deployed(nn.Module):
    """The part of a model that is exported: (N, C, H, W) preprocessed images -> logits, or labels.

    Args:
        model: A segmentor or classifier.
        labels: Give the int64 labels instead; for a segmentor a map (N, H, W).
        forward: Computes logits from the model and images; by default those used for predictions.
    """

    def __init__(self, model: nn.Module, labels: bool = False, forward: Forward | None = None) -> None:
        super().__init__()
        self.model = model
        self.labels = labels
        self.logits_of = forward or prediction_forward
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits, or labels.

        Raises:
            ValueError: The model returns anything but one tensor.
        """
        logits = self.logits_of(self.model, images)
        if not isinstance(logits, Tensor):
            raise ValueError(
                f'{type(self.model).__name__} gives a {type(logits).__name__} where one tensor of logits was expected; '
                'only segmentors and classifiers with a head of one output are exported'
            )
        return self.labels_of(logits) if self.labels else logits

    def labels_of(self, logits: Tensor) -> Tensor:
        """Label of the largest logit; of a segmentor's only logit, whether its sigmoid exceeds the head's threshold."""
        if is_segmentor(self.model) and logits.shape[1] == 1:
            threshold = as_list(self.model.decode_head)[-1].threshold
            return (logits.squeeze(1).sigmoid() > threshold).long()
        return logits.argmax(1)


def require_packages() -> None:
    """Check that the packages that ONNX needs are installed.

    Raises:
        ValueError: A package is missing; names it.
    """
    missing = [name for name in PACKAGES if not compat.has_package(name)]
    if missing:
        raise ValueError(f"ONNX needs {', '.join(missing)}: pip install 'mmprune_gates[onnx]'")


def onnx_of(module: Deployed, shape: Sequence[int], dynamic_size: bool = False, batch: int | None = None) -> Proto:
    """The ONNX model of a module.

    Args:
        module: The module.
        shape: (C, H, W) of the images.
        dynamic_size: Whether height and width may vary.
        batch: Batch size; None for any.

    Raises:
        ValueError: The module is too large, or cannot be captured or translated; says at which op.
    """
    held = sum(tensor.nbytes for tensor in module.state_dict().values())
    if held > LARGEST:
        raise ValueError(f'the model holds {held / 2**30:.1f} GiB, and no ONNX file more than 2')
    with quiet():
        varying = [dim for dim in DIMENSIONS if (batch is None if dim == 0 else dynamic_size)]
        program = captured(module, torch.zeros(batch or 2, *shape), varying)
        if dynamic_size:
            refuse_pooling(program)
        proto = translated(program, LABELS if module.labels else LOGITS)
    strip(proto)
    name_dimensions(proto)
    return proto


def onnx_of_batches(module: Deployed, shape: Sequence[int], batch: int) -> tuple[Proto, str | None]:
    """The ONNX model of a module for any batch, or else for a fixed one, and why it is not for any.

    Args:
        module: The module.
        shape: (C, H, W) of the images.
        batch: The fixed batch size; some models, as Swin, fix the batch in their code.

    Raises:
        ValueError: As :func:`onnx_of`.
    """
    try:
        return onnx_of(module, shape), None
    except ValueError as error:
        reason = str(error)
    return onnx_of(module, shape, batch=batch), reason


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter's warnings, which are about itself."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@torch.no_grad()
def captured(module: Deployed, images: Tensor, varying: Sequence[int]) -> ExportedProgram:
    """The module as ATen ops.

    Args:
        module: The module.
        images: (N, C, H, W) zeros.
        varying: Dimensions of the images whose size may vary.

    Raises:
        ValueError: Its code fixes a dimension that should vary, or cannot be captured at all.
    """
    dimensions = dict.fromkeys(varying, Dim.DYNAMIC)
    try:
        return torch.export.export(module, (images,), dynamic_shapes=(dimensions,), strict=False)
    except Exception as error:  # it runs the model's code
        name, text = type(module.model).__name__, str(error)
        fixed = [f'{DIMENSIONS[int(dim)]} ({size})' for dim, size in FIXED.findall(text)]
        if fixed:
            raise ValueError(
                f'the code of {name} fixes {" and ".join(fixed)} of its input, so its ONNX model would take no other; '
                'for a fixed batch give --batch N, for fixed height or width leave out --dynamic-size'
            ) from error
        raise ValueError(
            f'torch.export cannot capture {name} with images of shape {tuple(images.shape)}: {first_lines(text)}'
        ) from error


def refuse_pooling(program: ExportedProgram) -> None:
    """Refuse pooling to several cells, as in pyramid pooling, if the image size may vary.

    torch's exporter is correct only for sizes that the number of cells divides, and can take an hour over it.

    Raises:
        ValueError: A module does it; names it.
    """
    for node in program.graph.nodes:
        if 'adaptive_avg_pool2d' in str(node.target) and any(size != 1 for size in node.args[1]):
            path = module_path(node).removeprefix('model.')
            raise ValueError(
                f"torch's ONNX exporter does not translate adaptive_avg_pool2d to {tuple(node.args[1])} in {path} for "
                'images of any size: leave out --dynamic-size'
            )


def translated(program: ExportedProgram, output: str) -> Proto:
    """A captured program as an optimised ONNX model.

    Raises:
        ValueError: An op has no translation; names it and the module that calls it.
    """
    try:
        found = torch.onnx.export(program, dynamo=True, input_names=[IMAGES], output_names=[output], verbose=False)
    except torch.onnx.errors.OnnxExporterError as error:
        raise ValueError(untranslated(error)) from error
    if found is None:
        raise RuntimeError('torch.onnx.export has returned nothing')
    return found.model_proto


def untranslated(error: BaseException) -> str:
    """The message for a user when torch's exporter has failed.

    Args:
        error: The error that it raised.
    """
    match = UNTRANSLATED.search(str(error))
    if match is None:
        return f"torch's ONNX exporter has failed: {first_lines(str(error))}"
    name, op = match[1], match[2].removesuffix('.default')
    path = path_of_failed(error, name)
    where = f' in {path}' if path else ''
    return f"torch's ONNX exporter has no translation for the op {op}{where}; a model with this op cannot be exported"


def path_of_failed(error: BaseException, name: str) -> str:
    """Path of the module that calls the op at which the exporter failed; empty if that is not known.

    The exporter rewrites the graph before it translates it, so the op is looked up in the frames of the error.

    Args:
        error: The error that the exporter raised.
        name: Name of the op's node.
    """
    cause: BaseException | None = error
    while cause is not None:
        for frame, _ in traceback.walk_tb(cause.__traceback__):
            for value in frame.f_locals.values():
                if isinstance(value, Node) and value.name == name:
                    return module_path(value).removeprefix('model').lstrip('.')
        cause = cause.__cause__
    return ''


def first_lines(text: str) -> str:
    """The first lines of a message of torch; the rest is advice about torch."""
    told = [line.strip() for line in text.splitlines() if line.strip()]
    return ' '.join(told[:2])


def strip(proto: Proto) -> None:
    """Remove the exporter's notes from the graph: lines of code with folders of this machine."""
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
    for node in graph.node:
        node.ClearField('doc_string')


def name_dimensions(proto: Proto) -> None:
    """Name the varying dimensions of the images wherever they occur."""
    names = {}
    dimensions = proto.graph.input[0].type.tensor_type.shape.dim
    for number, name in DIMENSIONS.items():
        if dimensions[number].dim_param:
            names[dimensions[number].dim_param] = name
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            words = re.split(r'(\w+)', dimension.dim_param)
            if len(words) > 1:
                dimension.dim_param = ''.join(names.get(word, word) for word in words)


def session_of(proto: Proto, threads: int = 1, **further: Any) -> Session:
    """An onnxruntime session on the CPU.

    Args:
        proto: The ONNX model.
        threads: Number of threads.
        **further: Further attributes of its ``SessionOptions``.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    for name, value in further.items():
        setattr(options, name, value)
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=['CPUExecutionProvider'])


def run_session(session: Session, images: Tensor) -> Tensor:
    """Output of onnxruntime for images.

    Raises:
        ValueError: It fails.
    """
    try:
        (found,) = session.run(None, {IMAGES: images.numpy()})
    except Exception as error:  # of classes that onnxruntime does not name
        raise ValueError(f'onnxruntime cannot run the model for images of {tuple(images.shape)}: {error}') from error
    return torch.from_numpy(found)


@dataclass(frozen=True)
class Agreement:
    """How far onnxruntime is from the module, over all inputs.

    Attributes:
        shapes: (N, C, H, W) of the random images.
        error: Largest difference of logits, relative to the largest logit; None for labels.
        equal: Share of labels that are equal.
    """

    shapes: tuple[Shape, ...]
    error: float | None
    equal: float

    @property
    def holds(self) -> bool:
        """Whether the two agree within the tolerances."""
        return self.equal >= EQUAL and (self.error is None or self.error <= TOLERANCE)

    def __str__(self) -> str:
        told = f'{self.equal:.2%} of the labels are equal'
        if self.error is None:
            return told
        return f'relative error {self.error:.1e}, {told}'


@torch.no_grad()
def compare(session: Session, module: Deployed, shapes: Sequence[Shape]) -> Agreement:
    """Run onnxruntime and the module side by side on random images of several shapes.

    Code that squeezes may drop a batch of one (LeNet's does), which its ONNX model keeps; that is no difference.

    Raises:
        ValueError: Outputs have other shapes, or the module's own are not finite.
    """
    generator = torch.Generator().manual_seed(0)
    errors, same, count = [], 0, 0
    for shape in shapes:
        images = torch.randn(shape, generator=generator)
        expected, found = module(images), run_session(session, images)
        if found.squeeze().shape == expected.squeeze().shape:
            expected = expected.reshape(found.shape)
        if found.shape != expected.shape:
            raise ValueError(f'onnxruntime gives {tuple(found.shape)} for {shape}, the model {tuple(expected.shape)}')
        if not expected.isfinite().all():
            raise ValueError('the outputs of the model are not finite (NaN or infinite), so nothing can be compared')
        if not module.labels:
            errors.append(relative_error([expected], [found]))
            expected, found = module.labels_of(expected), module.labels_of(found)
        same += int((expected == found).sum())
        count += expected.numel()
    error = None if module.labels else float(torch.tensor(errors).max())
    return Agreement(tuple(shapes), error, same / count)


def random_ops(proto: Proto) -> list[str]:
    """The operators of a model that draw random numbers."""
    return sorted({node.op_type for node in proto.graph.node if node.op_type.startswith(DRAWING)})


def norms_left(proto: Proto) -> int:
    """Number of batch norms that remain: those behind convolutions are folded."""
    return sum(node.op_type == 'BatchNormalization' for node in proto.graph.node)


def opset_of(proto: Proto) -> int:
    """Version of the standard operator set."""
    return next(entry.version for entry in proto.opset_import if entry.domain in ('', 'ai.onnx'))
