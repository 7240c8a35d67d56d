"""The op table: ATen op -> what it does to channels. An op that is not listed freezes what it touches.

Support for a new op is one row here, a rule if none fits, and a test.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import getitem

from mmprune_gates.channels import layers, pointwise, products, shapes
from mmprune_gates.channels.op import NO_RULE, Op, op_name

HOMOGENEOUS = (
    'relu leaky_relu abs neg dropout feature_dropout clone contiguous detach alias to _to_copy type_as lift_fresh_copy'
)
RESAMPLING = (
    'max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d '
    'adaptive_avg_pool3d adaptive_max_pool2d upsample_nearest1d upsample_nearest2d upsample_nearest3d '
    'upsample_bilinear2d upsample_bicubic2d upsample_linear1d upsample_trilinear3d'
)
ZERO_PRESERVING = 'relu6 silu gelu hardswish tanh elu selu celu mish sin sqrt square sign expm1 log1p'
# Not here: log, reciprocal, rsqrt and the like, which are infinite where a closed channel is zero.
ANY_FUNCTION = (
    'sigmoid hardsigmoid exp cos softplus log_sigmoid alpha_dropout zeros_like ones_like full_like rand_like randn_like'
)
VIEWS = 'view reshape flatten unflatten squeeze unsqueeze view_as reshape_as _unsafe_view'
PRODUCTS = 'matmul mm bmm einsum scaled_dot_product_attention'

TABLE: dict[str, Callable[[Op], object]] = {
    # layers
    'conv1d': layers.convolution,
    'conv2d': layers.convolution,
    'conv3d': layers.convolution,
    'conv_transpose1d': layers.transposed_convolution,
    'conv_transpose2d': layers.transposed_convolution,
    'conv_transpose3d': layers.transposed_convolution,
    'linear': layers.linear,
    'batch_norm': layers.batch_norm,
    'instance_norm': layers.batch_norm,
    **dict.fromkeys(PRODUCTS.split(), products.product),
    # one element, or one channel, at a time
    **dict.fromkeys(HOMOGENEOUS.split(), pointwise.same),
    **dict.fromkeys(RESAMPLING.split(), pointwise.resampling),
    **dict.fromkeys(ZERO_PRESERVING.split(), pointwise.zero_preserving),
    **dict.fromkeys(ANY_FUNCTION.split(), pointwise.any_function),
    'grid_sampler': pointwise.sampling,
    '_assert_tensor_metadata': pointwise.nothing,
    'clamp': pointwise.clamp,
    'clamp_min': pointwise.clamp,
    'hardtanh': pointwise.clamp,
    'pow': pointwise.power,
    'prelu': pointwise.prelu,
    'add': pointwise.additive,
    'sub': pointwise.additive,
    'rsub': pointwise.additive,
    'maximum': pointwise.additive,
    'minimum': pointwise.additive,
    'mul': pointwise.multiplicative,
    'div': pointwise.quotient,
    'eq': pointwise.comparison,
    'ne': pointwise.comparison,
    'lt': pointwise.comparison,
    'gt': pointwise.comparison,
    'le': pointwise.comparison,
    'ge': pointwise.comparison,
    # over a dimension
    'sum': pointwise.reduction,
    'mean': pointwise.reduction,
    'amax': pointwise.reduction,
    'amin': pointwise.reduction,
    'linalg_vector_norm': pointwise.vector_norm,
    'softmax': pointwise.normalised,
    'log_softmax': pointwise.normalised,
    'layer_norm': pointwise.layer_norm,
    'group_norm': pointwise.group_norm,
    # moving elements about
    **dict.fromkeys(VIEWS.split(), shapes.view),
    'permute': shapes.permute,
    'transpose': shapes.transpose,
    't': shapes.transpose,
    'expand': shapes.expand,
    'expand_as': shapes.expand,
    'cat': shapes.cat,
    'concat': shapes.cat,
    'stack': shapes.stack,
    'chunk': shapes.chunk,
    'split': shapes.split,
    'split_with_sizes': shapes.split,
    'roll': pointwise.roll,
    'unbind': shapes.unbind,
    'pixel_shuffle': shapes.pixel_shuffle,
    'slice': shapes.take_slice,
    'select': shapes.select,
    'pad': shapes.pad,
    'constant_pad_nd': shapes.pad,
    'reflection_pad2d': shapes.pad,
    'replication_pad2d': shapes.pad,
}

# Ops on one element at a time: numbers that they are given are never sizes.
ELEMENTWISE = frozenset(
    name
    for name, rule in TABLE.items()
    if rule in (pointwise.same, pointwise.zero_preserving, pointwise.any_function, pointwise.clamp, pointwise.power)
    or rule in (pointwise.additive, pointwise.multiplicative, pointwise.quotient, pointwise.comparison)
)


def apply_rule(op: Op) -> object:
    """Labels of the op's result (a list for several results).

    An op without a rule freezes its operands, and so does a call that its rule cannot handle: a gap in a rule costs
    coverage, never a trace. The in-place form of an op (``relu_``) follows the same rule.
    """
    rule = shapes.getitem if op.node.target is getitem else TABLE.get(op_name(op.node))
    if rule is None:
        return op.give_up(NO_RULE)
    try:
        return rule(op)
    except Exception as error:
        sizes = [value.shape for value in op.tensors]
        return op.give_up(f'its rule cannot handle this call on shapes {sizes}: {type(error).__name__}: {error}')
