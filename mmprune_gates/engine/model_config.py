"""Model configs: the keys that our builders and hooks add to a stock config, and how to remove them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config

from mmprune_gates.budget.goal import NAMES
from mmprune_gates.checks import IMAGE, MAPPING, Rule, checked, is_list, is_shape

GATED, SLIM = 'mmprune_gates.GatedModel', 'mmprune_gates.SlimModel'
GATE_KEYS = ('gates', 'units', 'attention')  # of a GatedModel alone
ADDED_KEYS = ('architecture', 'input_shape', *GATE_KEYS, 'widths', 'removed')  # of both, besides the stock model's own
SIZE = Rule(
    'one or two positive whole numbers: height and width',
    lambda value: is_shape(value if is_list(value) else [value]) and (not is_list(value) or len(value) == 2),
)
RUN_KEYS = ('work_dir', 'resume', 'launcher')  # of a config that belong to one run


def stock_model(model: Mapping[str, Any]) -> dict[str, Any]:
    """The stock model config inside that of a gated or slim model."""
    stock = {'type': model['architecture']}
    for key, value in model.items():
        if key != 'type' and key not in ADDED_KEYS:
            stock[key] = value
    return stock


def refuse_slim(gated: Mapping[str, Any]) -> None:
    """Refuse the config of a gated model whose base config is of a slim one.

    Raises:
        ValueError: It is.
    """
    if 'widths' in gated:
        raise ValueError(
            'model.widths: the base config is of a slim model, which is not pruned again; take the dense config, and a '
            'smaller target'
        )


def slim_config(stock: Mapping[str, Any], **spec: Any) -> dict[str, Any]:
    """The config of a slim model: that of a stock one, and what :func:`~mmprune_gates.slim_model` returns."""
    own = {key: value for key, value in stock.items() if key != 'type'}
    return {'type': SLIM, 'architecture': stock['type'], **spec, **own}


def model_config_of(config: Config) -> dict[str, Any]:
    """The model config of a run as its Runner completes it, without pretrained weights: checkpoints replace them."""
    model = without_pretrained(config.model.to_dict())
    if config.get('data_preprocessor'):
        model.setdefault('data_preprocessor', config.data_preprocessor.to_dict())
    return model


def is_ours(hook: Mapping[str, Any] | object) -> bool:
    """Whether a custom hook, as a config or an object, belongs to this package."""
    kind = hook.get('type') if isinstance(hook, Mapping) else type(hook)
    name = kind if isinstance(kind, str) else getattr(kind, '__module__', '')
    return name.startswith('mmprune_gates.')


def pruning_hook_of(config: Config) -> dict[str, Any]:
    """The custom hook of a config that prunes; empty if there is none."""
    for hook in config.get('custom_hooks') or []:
        if is_ours(hook) and not NAMES.keys().isdisjoint(hook):
            return dict(hook)
    return {}


def without_our_hooks(hooks: Sequence | None) -> list:
    """The custom hooks of a config that do not belong to this package."""
    return [hook for hook in hooks or [] if not is_ours(hook)]


def with_our_import(custom_imports: Mapping[str, Any] | None) -> dict[str, Any]:
    """``custom_imports`` that also import this package."""
    custom = dict(custom_imports or {})
    imports = custom.get('imports') or []
    if isinstance(imports, str):
        imports = [imports]
    once = dict.fromkeys(['mmprune_gates', *imports])
    custom['imports'] = list(once)
    return custom


def default_input_shape(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """(C, H, W) that MACs are stated for: the model config's ``input_shape``, or else its crop size.

    Raises:
        ValueError: It states neither.
    """
    shape = config.get('input_shape')
    if shape is not None:
        return tuple(checked('model.input_shape', shape, IMAGE))
    preprocessor = checked('model.data_preprocessor', config.get('data_preprocessor') or {}, MAPPING)
    size = preprocessor.get('size')
    if size is None:
        raise ValueError(
            'the input size that MACs are stated for is not known: set model.input_shape=(3, H, W) '
            '(or data_preprocessor.size, from which it is taken otherwise)'
        )
    checked('model.data_preprocessor.size', size, SIZE)
    if not is_list(size):
        size = (size, size)
    return (3, *size)


def without_pretrained(config: Any) -> Any:
    """A model config with every pretrained initialisation removed."""
    if isinstance(config, (list, tuple)):
        return type(config)(map(without_pretrained, config))
    if not isinstance(config, Mapping):
        return config
    kept: dict[str, Any] = {}
    for key, value in config.items():
        initialisation = value if key == 'init_cfg' and isinstance(value, Mapping) else {}
        if key == 'pretrained' or initialisation.get('type') == 'Pretrained':
            kept[key] = None
        else:
            kept[key] = without_pretrained(value)
    return kept
