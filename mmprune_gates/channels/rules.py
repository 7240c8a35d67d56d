"""The op table: ATen op -> what it does to channels. An op that is not listed freezes what it touches.

Support for a new op takes one row here, a rule if none fits, and a test. A row also lists the op's traits; other code
asks for these, not for the op's rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Flag, auto
from functools import partial
from operator import getitem

from mmprune_gates.channels import layers, moving, pointwise, products, views
from mmprune_gates.channels.labels import GATED, LOST, ZERO
from mmprune_gates.channels.op import NO_RULE, Op, Result, op_name


class Trait(Flag):
    """Properties of an op besides its channel rule."""

    NONE = 0
    ELEMENTWISE = auto()  # works element by element: its number arguments are never sizes
    ANY_WIDTH = auto()  # its arguments do not fix the width of its tensors
    CONSTANT = auto()  # maps one value per channel to one value per channel
    PRODUCT = auto()  # multiplies activations with each other, independently along batch dimensions
    BIAS = auto()  # maps an input of zeros to its bias, one value per channel


@dataclass(frozen=True)
class Rule:
    """A row of the table.

    Attributes:
        labels: Maps a call of the op to the labels of its result.
        traits: Its other properties.
    """

    labels: Callable[[Op], Result]
    traits: Trait = Trait.NONE


def rows(names: str, labels: Callable[[Op], Result], traits: Trait = Trait.NONE) -> dict[str, Rule]:
    """One row for each of several ops of the same kind."""
    return dict.fromkeys(names.split(), Rule(labels, traits))


FUNCTION = Trait.ELEMENTWISE | Trait.ANY_WIDTH | Trait.CONSTANT
REORDERING = Trait.ANY_WIDTH | Trait.CONSTANT

TABLE: dict[str, Rule] = {
    # layers
    **rows('conv1d conv2d conv3d', partial(layers.convolution, transposed=False), Trait.BIAS),
    **rows('conv_transpose1d conv_transpose2d conv_transpose3d', partial(layers.convolution, transposed=True)),
    **rows('linear', layers.linear, Trait.BIAS),
    **rows('batch_norm', layers.batch_norm, Trait.CONSTANT),
    **rows('instance_norm', layers.batch_norm),
    # products of activations
    **rows('matmul mm bmm', products.matrix_product, Trait.PRODUCT),
    **rows('baddbmm', products.added_product, Trait.PRODUCT),
    **rows('einsum', products.einsum, Trait.PRODUCT),
    **rows('scaled_dot_product_attention', products.attention, Trait.PRODUCT),
    # functions of one element: positively homogeneous, those that keep zero, any others
    **rows('relu leaky_relu abs neg dropout feature_dropout', pointwise.passing(GATED), FUNCTION),
    **rows('clone contiguous detach alias to _to_copy type_as lift_fresh_copy', pointwise.passing(GATED), FUNCTION),
    **rows(
        'relu6 silu gelu hardswish tanh elu selu celu mish hardshrink softshrink', pointwise.passing(ZERO), FUNCTION
    ),
    **rows('sin sqrt square sign expm1 log1p erf atan asinh sinh tan', pointwise.passing(ZERO), FUNCTION),
    **rows('sigmoid hardsigmoid exp cos softplus log_sigmoid alpha_dropout', pointwise.passing(LOST), FUNCTION),
    **rows('zeros_like ones_like full_like rand_like randn_like', pointwise.passing(LOST), FUNCTION),
    # infinite where a closed channel is zero, unless something positive is added first
    **rows('log log2 log10 reciprocal rsqrt', pointwise.of_positive, FUNCTION),
    **rows('clamp clamp_min hardtanh', pointwise.clamp, FUNCTION),
    **rows('pow', pointwise.power, FUNCTION),
    **rows('prelu', pointwise.prelu),
    **rows('_assert_tensor_metadata new_zeros new_ones new_full new_empty', pointwise.nothing),
    # functions of one element of each operand
    **rows('add sub rsub maximum minimum', pointwise.additive, FUNCTION),
    **rows('mul', pointwise.multiplicative, FUNCTION),
    **rows('div', pointwise.quotient, Trait.ELEMENTWISE),
    **rows('eq ne lt gt le ge masked_fill where', pointwise.comparison, Trait.ELEMENTWISE),
    # within a channel
    **rows('max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d', pointwise.resampling),
    **rows('adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d', pointwise.resampling),
    **rows('adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d', pointwise.resampling),
    **rows('upsample_nearest1d upsample_nearest2d upsample_nearest3d', pointwise.resampling),
    **rows('upsample_bilinear2d upsample_bicubic2d upsample_linear1d upsample_trilinear3d', pointwise.resampling),
    **rows('_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d', pointwise.resampling),
    **rows('_upsample_bilinear2d_aa _upsample_bicubic2d_aa', pointwise.resampling),
    **rows('grid_sampler', pointwise.sampling),
    # over a dimension
    **rows('sum mean amax amin std linalg_vector_norm', pointwise.reduction),
    **rows('var', partial(pointwise.reduction, at_most=ZERO)),
    **rows('max min', pointwise.extreme),
    **rows('softmax log_softmax', pointwise.softmax),
    **rows('layer_norm rms_norm', pointwise.layer_norm),
    **rows('group_norm', pointwise.group_norm),
    # moving elements
    **rows('permute transpose t mT', moving.reordered, REORDERING),
    **rows('view reshape flatten unflatten squeeze unsqueeze view_as reshape_as _unsafe_view', views.view),
    **rows('expand expand_as', moving.expand),
    **rows('repeat', moving.repeat),
    **rows('repeat_interleave', moving.repeat_interleave),
    **rows('embedding', moving.embedding),
    **rows('cat concat', moving.cat),
    **rows('stack', moving.stack),
    **rows('chunk', moving.chunk),
    **rows('tensor_split', moving.tensor_split),
    **rows('split split_with_sizes', moving.split),
    **rows('unbind', moving.unbind),
    **rows('slice', moving.take_slice),
    **rows('select', moving.select),
    **rows('roll', moving.roll),
    **rows('flip', moving.flip),
    **rows('index', moving.index),
    **rows('pixel_shuffle', moving.pixel_shuffle),
    **rows('im2col', partial(moving.unfold, spatial=1)),
    **rows('pixel_unshuffle', partial(moving.unfold, spatial=2)),
    **rows('glu', moving.glu),
    **rows('pad constant_pad_nd reflection_pad2d replication_pad2d', moving.pad),
}


def has_trait(name: str, trait: Trait) -> bool:
    """Whether the op of a name has a trait."""
    rule = TABLE.get(name)
    return rule is not None and trait in rule.traits


def apply_rule(op: Op) -> Result:
    """Labels of the op's result (a list for several results).

    An op without a rule freezes its operands, and so does a call that its rule cannot handle: a gap in a rule costs
    coverage, never a trace. The in-place form of an op (``relu_``) follows the same rule.
    """
    if op.node.target is getitem:
        return moving.getitem(op)
    rule = TABLE.get(op_name(op.node))
    if rule is None:
        return op.give_up(NO_RULE)
    try:
        return rule.labels(op)
    except Exception as error:
        sizes = [value.shape for value in op.tensors]
        return op.give_up(f'its rule cannot handle this call on shapes {sizes}: {type(error).__name__}: {error}')
