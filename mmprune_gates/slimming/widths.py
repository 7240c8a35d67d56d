"""Widths: the attributes of a module that say how many channels it has, and the shapes that follow from them.

A table of widths is what a slim model needs besides the config of its architecture:
``{'backbone.conv1': {'out_channels': 24}, 'backbone.bn1': {'num_features': 24}}``. A plain parameter or buffer of
a module whose size no such attribute gives (a layer scale) is listed by name with its shape. A module that keeps its
full width stands as ``{'full_width': {'dim': 1, 'channels': 64, 'kept': 24, 'zeros': 'behind', 'scaled': False}}``: the
arguments of :func:`keep_full_width`, the last two of which are optional. A module whose code counts heads stands with
the attributes that say how many there are: ``{'num_heads': 3, 'embed_dims': 192}`` (``attributes.py``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from mmprune_gates.channels.calls import floating_tensor
from mmprune_gates.checks import COUNT, MAPPING, SWITCH, WHOLE, Rule, checked, is_shape, one_of
from mmprune_gates.gates.full_width import keep_full_width
from mmprune_gates.gates.zeros import WAYS
from mmprune_gates.slimming.attributes import set_following, split_following
from mmprune_gates.slimming.removal import module_named
from mmprune_gates.slimming.torch_attention import allow_any_width, avoid_nested_tensors

Shapes = dict[str, tuple[int, ...]]
Attributes = dict[str, int]
Holders = list[tuple[nn.Module, str]]  # (module, attribute) wherever one parameter is held
Widths = dict[str, dict[str, Any]]  # see above
FULL_WIDTH = 'full_width'
FULL_WIDTH_KEYS = {'dim': WHOLE, 'channels': COUNT, 'kept': COUNT}
FULL_WIDTH_OPTIONS = {'zeros': one_of(WAYS), 'scaled': SWITCH}
Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d | Transposed
Layout = dict[str, tuple[str, ...]]  # tensor -> the attribute that holds its size, for each of its dimensions
NORM: Layout = dict.fromkeys(('weight', 'bias', 'running_mean', 'running_var'), ('num_features',))
LINEAR: Layout = {'weight': ('out_features', 'in_features'), 'bias': ('out_features',)}
PRELU: Layout = {'weight': ('num_parameters',)}
EMBEDDING: Layout = {'weight': ('num_embeddings', 'embedding_dim')}


def conv_shapes(conv: Convolution) -> Shapes:
    """Shapes of a convolution's parameters from its attributes."""
    first, second = conv.out_channels, conv.in_channels
    if conv.transposed:
        first, second = second, first
    weight = (first, second // conv.groups, *conv.kernel_size)
    bias = (conv.out_channels,)
    return {'weight': weight, 'bias': bias}


def conv_attributes(conv: Convolution, grouped: bool) -> Attributes:
    """Attributes of a convolution from the shape of its weight.

    Args:
        conv: The convolution.
        grouped: Whether it keeps its groups, even if each reads a single channel by now; a depthwise one does not.
    """
    first, second = conv.weight.shape[:2]
    groups = conv.groups
    if 1 < groups == conv.in_channels and not grouped:
        before = conv.in_channels if conv.transposed else conv.out_channels
        groups = groups * first // before
    second *= groups
    if not conv.transposed:
        first, second = second, first
    return {'in_channels': first, 'out_channels': second, 'groups': groups}


def layout_of(module: nn.Module) -> Layout:
    """The attributes that hold the sizes of a module's tensors; empty for modules of other kinds."""
    # A batch or instance norm of torch, or of a package that derives its own.
    if hasattr(module, 'num_features') and hasattr(module, 'running_mean'):
        return NORM
    if isinstance(module, nn.Linear):
        return LINEAR
    if isinstance(module, nn.PReLU):
        return PRELU
    if isinstance(module, nn.Embedding):
        return EMBEDDING
    return {}


def shapes_of(module: nn.Module) -> Shapes:
    """Shapes of a module's tensors from its attributes; empty if it has no such attributes."""
    if isinstance(module, Convolution):
        return conv_shapes(module)
    shapes = {}
    for tensor, attributes in layout_of(module).items():
        sizes = [getattr(module, name) for name in attributes]
        shapes[tensor] = tuple(sizes)
    return shapes


def attributes_of(module: nn.Module, grouped: bool) -> Attributes:
    """Attributes of a module from the shapes of its tensors; empty if it has no such attributes."""
    if isinstance(module, Convolution):
        return conv_attributes(module, grouped)
    found: Attributes = {}
    for name, attributes in layout_of(module).items():
        tensor = getattr(module, name, None)
        if tensor is not None:
            sizes = zip(attributes, tensor.shape, strict=False)
            found.update(sizes)
    return found


def sync_attributes(module: nn.Module, changed: list[str], grouped: bool) -> dict[str, Any]:
    """Set a module's attributes to the sizes of its tensors.

    Args:
        module: A module whose tensors have been replaced.
        changed: Names of those tensors.
        grouped: Whether it is a convolution that keeps its groups.

    Returns:
        The attributes that changed, and the shapes of tensors that these do not give: those of other modules, and
        those that the code does not use, such as a bias left out, which stay as they were.
    """
    allow_any_width(module)
    found: dict[str, Any] = {}
    for name, value in attributes_of(module, grouped).items():
        if getattr(module, name) != value:
            setattr(module, name, value)
            found[name] = value
    known = shapes_of(module)
    for name in dict.fromkeys((*changed, *known)):
        tensor = getattr(module, name, None)
        if tensor is not None and tensor.shape != known.get(name):
            found[name] = list(tensor.shape)
    return found


def apply_widths(model: nn.Module, widths: Mapping[str, Mapping]) -> None:
    """Give a freshly built model the widths of a table; the resized modules are initialised anew.

    Raises:
        ValueError: A path or attribute that the model does not have, or an invalid width; the message names it.
    """
    checked('widths', widths, MAPPING)
    avoid_nested_tensors(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    tied = tied_parameters(model)
    for path, attributes in widths.items():
        module = module_named(modules, path, 'widths')
        check_widths(module, path, attributes)
        if FULL_WIDTH in attributes:
            like = floating_tensor(model)
            keep_full_width(module, like, **attributes[FULL_WIDTH])
            continue
        following, sizes = split_following(module, attributes)
        if sizes:
            resize(module, path, sizes)
        for name, value in following.items():
            set_following(module, name, value)
    for holders in tied:
        first, attribute = holders[0]
        parameter = getattr(first, attribute)
        for module, name in holders[1:]:
            setattr(module, name, parameter)


def tied_parameters(model: nn.Module) -> list[Holders]:
    """The holders of each parameter that several modules share."""
    places = defaultdict(list)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            place = (module, name)
            places[parameter].append(place)
    return [holders for holders in places.values() if len(holders) > 1]


def check_widths(module: nn.Module, path: str, attributes: Mapping) -> None:
    """Refuse widths that a module does not have, and values that are not widths.

    Raises:
        ValueError: Names the module and what is wrong.
    """
    where = f'widths of {path!r}'
    checked(where, attributes, MAPPING)
    if FULL_WIDTH in attributes:
        check_full_width(path, attributes[FULL_WIDTH])
        return
    following, attributes = split_following(module, attributes)
    for name, value in following.items():
        checked(f'{where}: {name}', value, COUNT)
    rules, kind = width_rules(module), type(module).__name__
    for name, value in attributes.items():
        if name not in rules:
            raise ValueError(f'{where}: {kind} has no attribute {name!r} that is a width; it has {sorted(rules)}')
        checked(f'{where}: {name}', value, rules[name])


def check_full_width(path: str, given: Mapping) -> None:
    """Refuse an invalid entry of a module that keeps its full width.

    Raises:
        ValueError: Names the module and what is wrong.
    """
    where = f'full_width of {path!r}'
    checked(where, given, MAPPING)
    rules = FULL_WIDTH_KEYS | FULL_WIDTH_OPTIONS
    missing = sorted(FULL_WIDTH_KEYS.keys() - given.keys())
    unknown = sorted(given.keys() - rules.keys())
    if missing:
        raise ValueError(f'{where}: {missing[0]!r} is missing')
    if unknown:
        raise ValueError(f'{where}: there is no {unknown[0]!r}, only {sorted(rules)}')
    for name, value in given.items():
        checked(f'{where}: {name}', value, rules[name])
    kept, channels = given['kept'], given['channels']
    if kept > channels:
        raise ValueError(f'{where}: kept={kept} of {channels} channels')


def width_rules(module: nn.Module) -> dict[str, Rule]:
    """Rules for the widths of a module: attributes that hold a number of channels, and shapes of its tensors."""
    counts: Iterable[str] = chain(*layout_of(module).values())
    if isinstance(module, Convolution):
        counts = conv_attributes(module, grouped=True)
    tensors = chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))
    rules = dict.fromkeys(counts, COUNT)
    for name, tensor in tensors:
        rules[name] = shape_of(tensor.dim())
    return rules


def shape_of(rank: int) -> Rule:
    """Rule for the shape of a tensor of so many dimensions."""
    words = f'a list of {rank} positive whole numbers'
    return Rule(words, lambda value: is_shape(value) and len(value) == rank)


def resize(module: nn.Module, path: str, attributes: Mapping) -> None:
    """Set width attributes of one module and replace its tensors by new ones of the shapes that follow.

    Raises:
        ValueError: The input or output channels of a convolution are not a multiple of its groups.
    """
    allow_any_width(module)
    for name, value in attributes.items():
        if isinstance(value, int):
            setattr(module, name, value)
        else:
            replace_tensor(module, name, torch.ones(value))
    if not shapes_of(module):
        return
    if isinstance(module, Convolution):
        before, after, groups = module.in_channels, module.out_channels, module.groups
        if before % groups or after % groups:
            raise ValueError(f'widths of {path!r}: {before} and {after} channels are no multiples of {groups} groups')
    for name, shape in shapes_of(module).items():
        if name not in attributes and getattr(module, name, None) is not None:
            replace_tensor(module, name, torch.ones(shape))
    reset = getattr(module, 'reset_parameters', None)
    if reset is not None:
        reset()


def replace_tensor(module: nn.Module, name: str, value: Tensor) -> Tensor:
    """Replace a parameter or buffer; requires_grad, dtype and device stay.

    A buffer is saved with the model from then on: the code that made it for all channels cannot make it again.

    Returns:
        The new tensor; passed again as ``value`` for another module, it is shared.
    """
    old = getattr(module, name)
    if not isinstance(value, nn.Parameter):
        value = value.detach().to(old)
        if isinstance(old, nn.Parameter):
            value = nn.Parameter(value, requires_grad=old.requires_grad)
    setattr(module, name, value)
    module._non_persistent_buffers_set.discard(name)  # noqa: SLF001
    return value
