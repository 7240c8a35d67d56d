"""Selects stock configs that represent the model families of the installed MMSegmentation and MMPretrain.

A family is a folder of the package's configs. It is represented by the config with the fewest parameters among those
directly in the folder that build: an encoder-decoder segmentor, or an image classifier with a head. Folders of
pre-training methods hold classifiers only as benchmarks below ``benchmarks/``; their backbones have other folders.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import mmprune_gates  # noqa: F401  (cures come before the imports below)

# isort: split
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmprune_gates.engine.model_config import without_pretrained

SCOPES = ('mmseg', 'mmpretrain')
ARCHITECTURES = ('EncoderDecoder', 'CascadeEncoderDecoder', 'ImageClassifier')
# Names of larger models of a family, or of inference-only versions; looked at only if there is nothing else.
LARGE = re.compile(
    r'large|huge|giant|gigantic|base|big|medium|xl|xxl|[-_](l|h|g)(?=[-_\d]|$)|[-_][bm](?=[-_]|$)|101|152'
    r'|(?<!x)b[3-9](?!\d)|deploy'
)
NO_FAMILY = {'mmseg/dsdl': 'a format of data sets; its models have folders of their own'}
# Keys that do not change which of two configs of one folder is smaller.
UNRELATED = ('data_preprocessor', 'train_cfg', 'test_cfg', 'loss', 'loss_decode', 'loss_cls', 'num_classes', 'init_cfg')

Selected = dict[str, tuple[dict[str, str], dict[str, str]]]


def configs_root(scope: str) -> Path:
    """Folder of the configs that an installed package brings along."""
    return Path(importlib.import_module(scope).__file__).parent / '.mim' / 'configs'


def load_model_config(scope: str, path: str) -> ConfigDict:
    """The model of a stock config, given relative to the package's configs, without pretrained weights."""
    return ConfigDict(without_pretrained(Config.fromfile(configs_root(scope) / path).model.to_dict()))


def select(scope: str, say: Callable[[str], None] = print) -> tuple[dict[str, str], dict[str, str]]:
    """The family table of a package.

    Returns:
        Folder -> config, fewest parameters first; and folder -> why it has none.
    """
    init_default_scope(scope)
    found, excluded = {}, {}
    for folder in sorted(path for path in configs_root(scope).iterdir() if path.is_dir() and path.name[0] != '_'):
        own = NO_FAMILY.get(f'{scope}/{folder.name}')
        best, reason = (None, own) if own else smallest(scope, folder)
        if best is None:
            excluded[folder.name] = reason
        else:
            found[folder.name] = best
        say(f'{scope}/{folder.name}: {best or reason}')
    chosen = {name: config for name, (_, config) in sorted(found.items(), key=lambda item: item[1])}
    return chosen, excluded


def smallest(scope: str, folder: Path) -> tuple[tuple[int, str] | None, str]:
    """(parameters, config) of a folder's smallest model, or None; and why there is none."""
    # Of several configs of one model, the plainest name comes first: some called r101 are R50.
    files = sorted(folder.glob('*.py'), key=lambda path: (is_large(path), path.name))
    candidates, reason = distinct(scope, files)
    sizes, reasons = [], []
    for path, model in candidates.items():
        try:
            sizes.append((parameters(model), path))
        except Exception as error:  # whatever a stock config raises is the reason
            reasons.append(last_line(error))
    if sizes:
        return min(sizes), ''
    return None, f'does not build: {reasons[0]}' if reasons else reason


def distinct(scope: str, files: Iterable[Path]) -> tuple[dict[str, ConfigDict], str]:
    """Config -> model of those that can represent a folder and differ in size; and the reason if there is none."""
    models, types, reason = {}, set(), 'no config directly in the folder'
    for file in files:
        path = file.relative_to(configs_root(scope)).as_posix()
        try:
            model = load_model_config(scope, path)
        except Exception as error:  # whatever a stock config raises is the reason
            reason = f'config cannot be read: {last_line(error)}'
            continue
        types.add(str(model.type))
        if model.type in ARCHITECTURES and (scope == 'mmseg' or model.get('head')):
            models.setdefault(json.dumps(sized(model), sort_keys=True, default=str), (path, model))
    if types and not models:
        reason = f'no segmentor or classifier of its own, but {", ".join(sorted(types))}'
    return small(dict(models.values())), reason


def small(models: Mapping[str, Any]) -> dict[str, Any]:
    """The models without those that are larger by name, unless none would remain."""
    kept = {path: model for path, model in models.items() if not is_large(Path(path))}
    return kept or dict(models)


def is_large(path: Path) -> bool:
    """Whether a config's name says that it is not the smallest."""
    return bool(LARGE.search(path.stem.lower()))


def sized(config: Any) -> Any:
    """The parts of a model config that its size depends on, as far as two configs of one folder differ."""
    if isinstance(config, Mapping):
        return {str(key): sized(value) for key, value in config.items() if key not in UNRELATED}
    return [sized(value) for value in config] if isinstance(config, (list, tuple)) else config


def parameters(config: ConfigDict) -> int:
    """Number of a model's parameters; on the meta device where it builds there."""
    try:
        with torch.device('meta'):
            model = MODELS.build(ConfigDict(config))
    except (NotImplementedError, RuntimeError):  # its constructor reads values
        model = MODELS.build(ConfigDict(config))
    return count(model)


def count(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def last_line(error: BaseException) -> str:
    """Type and last line of an error, or of its cause, without paths of this machine."""
    error = error.__cause__ or error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ['']
    return shortened(f'{type(error).__name__}: {lines[-1]}')


def shortened(text: str, width: int = 240) -> str:
    """At most ``width`` characters, without the folders of files."""
    text = re.sub(r'(?:/[\w.\-+@]+)+/(?=[\w.\-]+)', '', text)
    return text if len(text) <= width else text[: width - 1] + '…'


def module_text(selected: Selected) -> str:
    """Source of ``zoo_models.py``."""
    command = 'python tools/dev/zoo.py --select'
    lines = [f'"""The families of both model zoos, fewest parameters first; written by ``{command}``."""']
    for name, part in (('SELECTED', 0), ('EXCLUDED', 1)):
        lines += ['', f'{name} = {{']
        for scope, tables in selected.items():
            rows = [f'        {key!r}: {value!r},' for key, value in tables[part].items()]
            lines += [
                f'    {scope!r}: {{',
                *(f'{row}  # noqa: E501' if len(row) > 120 else row for row in rows),
                '    },',
            ]
        lines.append('}')
    return '\n'.join(lines) + '\n'
