"""Every config loads and inherits; those of the demo and the headline's also build their model at full size.

The other configs for real data are built and trained in test_recipes.py, at a smaller size.
"""

from pathlib import Path

import pytest
from conftest import CONFIGS, opened
from helpers import slow_but
from mmengine.registry import MODELS, init_default_scope

from mmprune_gates.engine.model_config import without_pretrained
from mmprune_gates.gates import has_gates

pytestmark = pytest.mark.models
PATHS = sorted(CONFIGS.rglob('*.py'))
BUILT = [*sorted((CONFIGS / 'demo').glob('*.py')), CONFIGS / 'gdp_deeplabv3plus_voc.py']
FEW = [path for path in BUILT if 'blocks' not in path.stem]


@pytest.mark.parametrize('path', PATHS, ids=lambda path: path.stem)
def test_it_loads_and_inherits(path):
    config = opened(path)
    assert '_base_ = ' in path.read_text(), 'configs inherit from stock ones or from each other'
    start = config.get('load_from')
    if start and '://' not in start and 'work_dirs/demo/' not in start:  # tools/dev/demo.py sets what is there
        assert Path(start).parent.name in {path.stem for path in PATHS}, 'a start is the work folder of a config'


@pytest.mark.parametrize('path', slow_but(FEW, BUILT), ids=lambda path: path.stem)
def test_it_builds(path):
    config = opened(path)
    init_default_scope(config.default_scope)
    model = MODELS.build(without_pretrained(config.model.to_dict()))
    assert has_gates(model) == (config.model.type == 'mmprune_gates.GatedModel')


def test_names_are_unique():  # a work folder has the name of its config
    assert len({path.stem for path in PATHS}) == len(PATHS)
