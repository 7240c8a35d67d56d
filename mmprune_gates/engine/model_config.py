"""Model configs: what our builders and hooks add to a stock config, and the stock config without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmprune_gates.checks import IMAGE, MAPPING, Rule, checked, is_list, is_shape

GATED, SLIM = 'mmprune_gates.GatedModel', 'mmprune_gates.SlimModel'
GATE_KEYS = ('gates', 'units')  # of a GatedModel alone
ADDED_KEYS = ('architecture', 'input_shape', *GATE_KEYS, 'widths', 'removed')  # of both, besides the stock model's own
SIZE = Rule(
    'one or two positive whole numbers: height and width',
    lambda value: is_shape(value if is_list(value) else [value]) and (not is_list(value) or len(value) == 2),
)
RUN_KEYS = ('work_dir', 'resume', 'launcher')  # of a config that belong to one run


def stock_model(model: Mapping[str, Any]) -> dict[str, Any]:
    """The stock model config inside that of a gated or slim model."""
    own = {key: value for key, value in model.items() if key not in (*ADDED_KEYS, 'type')}
    return {'type': model['architecture'], **own}


def is_ours(hook: Mapping[str, Any] | object) -> bool:
    """Whether a custom hook, as a config or built, is one of this package."""
    kind = hook.get('type') if isinstance(hook, Mapping) else type(hook)
    name = kind if isinstance(kind, str) else getattr(kind, '__module__', '')
    return name.startswith('mmprune_gates.')


def without_our_hooks(hooks: Sequence | None) -> list:
    """The custom hooks that a config has of its own."""
    return [hook for hook in hooks or [] if not is_ours(hook)]


def with_our_import(custom_imports: Mapping[str, Any] | None) -> dict[str, Any]:
    """``custom_imports`` that also find this package."""
    custom = dict(custom_imports or {})
    imports = custom.get('imports') or []
    imports = [imports] if isinstance(imports, str) else list(imports)
    return {**custom, 'imports': list(dict.fromkeys(['mmprune_gates', *imports]))}


def default_input_shape(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """(C, H, W) that MACs are stated for: the model config's ``input_shape``, or else its crop size.

    Raises:
        ValueError: It states none.
    """
    if config.get('input_shape') is not None:
        return tuple(checked('model.input_shape', config['input_shape'], IMAGE))
    preprocessor = config.get('data_preprocessor') or {}
    size = checked('model.data_preprocessor', preprocessor, MAPPING).get('size')
    if size is None:
        raise ValueError(
            'the input size that MACs are stated for is not known: set model.input_shape=(3, H, W) '
            '(or data_preprocessor.size, from which it is taken otherwise)'
        )
    checked('model.data_preprocessor.size', size, SIZE)
    return (3, *size) if is_list(size) else (3, size, size)


def without_pretrained(config: Any) -> Any:
    """A model config with every pretrained initialisation taken out."""
    if isinstance(config, Mapping):
        kept = {}
        for key, value in config.items():
            pretrained = key == 'init_cfg' and isinstance(value, Mapping) and value.get('type') == 'Pretrained'
            kept[key] = None if key == 'pretrained' or pretrained else without_pretrained(value)
        return kept
    return type(config)(map(without_pretrained, config)) if isinstance(config, (list, tuple)) else config
