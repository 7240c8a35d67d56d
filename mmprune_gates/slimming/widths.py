"""Widths: the attributes of a module that say how many channels it has, and the shapes that follow from them.

A table of widths is what a slim model needs besides the config of its architecture:
``{'backbone.conv1': {'out_channels': 24}, 'backbone.bn1': {'num_features': 24}}``. A plain parameter or buffer of
a module without such attributes (a layer scale) stands under its own name with its shape. A module that keeps its full
width stands as ``{'full_width': {'dim': 1, 'channels': 64, 'kept': 24}}``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from mmprune_gates.checks import COUNT, MAPPING, SHAPE, WHOLE, Rule, checked
from mmprune_gates.gates.full_width import keep_full_width

Widths = dict[str, dict[str, int | list[int] | dict[str, int]]]
FULL_WIDTH = 'full_width'
FULL_WIDTH_KEYS = {'dim': WHOLE, 'channels': COUNT, 'kept': COUNT}
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)


def conv_shapes(conv: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of a convolution's parameters from its attributes."""
    sides = [conv.out_channels, conv.in_channels // conv.groups]
    if isinstance(conv, TRANSPOSED):
        sides = [conv.in_channels, conv.out_channels // conv.groups]
    return {'weight': (*sides, *conv.kernel_size), 'bias': (conv.out_channels,)}


def conv_attributes(conv: nn.Module) -> dict[str, int]:
    """Attributes of a convolution from the shape of its weight."""
    first, second = conv.weight.shape[:2]
    groups = conv.groups
    if groups > 1 and groups == conv.in_channels:
        multiplier = conv.out_channels // groups
        groups = first if isinstance(conv, TRANSPOSED) else first // multiplier
    if isinstance(conv, TRANSPOSED):
        return {'in_channels': first, 'out_channels': second * groups, 'groups': groups}
    return {'in_channels': second * groups, 'out_channels': first, 'groups': groups}


def norm_shapes(norm: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of a batch or instance norm's parameters and buffers."""
    return dict.fromkeys(('weight', 'bias', 'running_mean', 'running_var'), (norm.num_features,))


def norm_attributes(norm: nn.Module) -> dict[str, int]:
    """``num_features`` from the tensors a norm has."""
    sizes = [len(t) for t in (norm.weight, norm.running_mean) if t is not None]
    return {'num_features': sizes[0] if sizes else norm.num_features}


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a batch or instance norm of torch, or of a package that derives its own."""
    return hasattr(module, 'num_features') and hasattr(module, 'running_mean')


# (applies to, attributes from tensors, shapes from attributes). Other modules have plain shapes.
TABLE = (
    (lambda module: isinstance(module, CONVOLUTIONS), conv_attributes, conv_shapes),
    (is_norm, norm_attributes, norm_shapes),
    (
        lambda module: isinstance(module, nn.Linear),
        lambda module: {'in_features': module.weight.shape[1], 'out_features': module.weight.shape[0]},
        lambda module: {'weight': (module.out_features, module.in_features), 'bias': (module.out_features,)},
    ),
    (
        lambda module: isinstance(module, nn.PReLU),
        lambda module: {'num_parameters': len(module.weight)},
        lambda module: {'weight': (module.num_parameters,)},
    ),
)


def sync_attributes(module: nn.Module, changed: list[str]) -> dict[str, int | list[int]]:
    """Set a module's attributes to what its tensors say, and return those that changed.

    Args:
        module: A module whose tensors have been replaced.
        changed: Names of those tensors.
    """
    for applies, attributes, _ in TABLE:
        if applies(module):
            found = {name: value for name, value in attributes(module).items() if getattr(module, name) != value}
            for name, value in found.items():
                setattr(module, name, value)
            return found
    return {name: list(getattr(module, name).shape) for name in changed}


def apply_widths(model: nn.Module, widths: Mapping[str, Mapping]) -> None:
    """Give a freshly built model the widths of a table; the resized modules are initialised anew.

    Raises:
        ValueError: A path or attribute that the model does not have, or a value that is no width, naming it.
    """
    checked('widths', widths, MAPPING)
    modules = dict(model.named_modules(remove_duplicate=False))
    tied = tied_parameters(model)
    for path, attributes in widths.items():
        if path not in modules:
            raise ValueError(
                f'widths name the module {path!r}, which {type(model).__name__} does not have: the slim config '
                'belongs to another architecture, or its keys were changed after slimming'
            )
        check_widths(modules[path], path, attributes)
        if FULL_WIDTH in attributes:
            keep_full_width(modules[path], next(model.parameters()), **attributes[FULL_WIDTH])
        else:
            resize(modules[path], path, attributes)
    for (owner, name), (other, other_name) in tied:
        setattr(other, other_name, getattr(owner, name))


def tied_parameters(model: nn.Module) -> list[tuple[tuple[nn.Module, str], tuple[nn.Module, str]]]:
    """(module, attribute) that holds a parameter first, and another that holds the same one."""
    first, tied = {}, []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            place = first.setdefault(parameter, (module, name))
            if place != (module, name):
                tied.append((place, (module, name)))
    return tied


def check_widths(module: nn.Module, path: str, attributes: Mapping) -> None:
    """Refuse widths that a module does not have, and values that are none.

    Raises:
        ValueError: Names the module and what is wrong.
    """
    checked(f'widths of {path!r}', attributes, MAPPING)
    rules = width_rules(module)
    if FULL_WIDTH in attributes:
        rules, attributes = FULL_WIDTH_KEYS, checked(f'full_width of {path!r}', attributes[FULL_WIDTH], MAPPING)
        if missing := sorted(rules.keys() - attributes.keys()):
            raise ValueError(f'full_width of {path!r}: {missing[0]!r} is missing')
    for name, value in attributes.items():
        if name not in rules:
            raise ValueError(
                f'widths of {path!r}: {type(module).__name__} has no attribute {name!r} that is a width; '
                f'it has {sorted(rules)}'
            )
        checked(f'widths of {path!r}: {name}', value, rules[name])
    if FULL_WIDTH_KEYS is rules and attributes['kept'] > attributes['channels']:
        raise ValueError(f'full_width of {path!r}: kept={attributes["kept"]} of {attributes["channels"]} channels')


def width_rules(module: nn.Module) -> dict[str, Rule]:
    """What the widths of a module must be: attributes that say how many channels it has, or shapes of its tensors."""
    for applies, attributes, _ in TABLE:
        if applies(module):
            return dict.fromkeys(attributes(module), COUNT)
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return dict.fromkeys((name for name, _ in own), SHAPE)


def resize(module: nn.Module, path: str, attributes: Mapping) -> None:
    """Set width attributes of one module and replace its tensors by new ones of the shapes that follow.

    Raises:
        ValueError: The sides of a convolution are no multiples of its groups.
    """
    shapes = next((shapes for applies, _, shapes in TABLE if applies(module)), None)
    if shapes is None:
        for name, shape in attributes.items():
            replace_tensor(module, name, torch.ones(tuple(shape)))
        return
    for name, value in attributes.items():
        setattr(module, name, value)
    if isinstance(module, CONVOLUTIONS) and (module.in_channels % module.groups or module.out_channels % module.groups):
        raise ValueError(
            f'widths of {path!r}: {module.in_channels} and {module.out_channels} channels are no multiples of '
            f'{module.groups} groups'
        )
    for name, shape in shapes(module).items():
        if getattr(module, name, None) is not None:
            replace_tensor(module, name, torch.ones(shape))
    if hasattr(module, 'reset_parameters'):
        module.reset_parameters()


def replace_tensor(module: nn.Module, name: str, value: torch.Tensor) -> torch.Tensor:
    """Put a new parameter or buffer in the place of an old one; requires_grad, dtype and device stay.

    Returns:
        The new one; given again as ``value`` for another module, it is shared.
    """
    old = getattr(module, name)
    if not isinstance(value, nn.Parameter):
        value = value.detach().to(old)
        value = nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
    setattr(module, name, value)
    return value
