"""What our builders and hooks add to a config is known in one place, and can be taken out again."""

import inspect

from mmengine.hooks import EMAHook

from mmprune_gates.engine import PolarizationHook, build_gated_model, build_slim_model
from mmprune_gates.engine.model_config import ADDED_KEYS, GATE_KEYS, is_ours, stock_model, with_our_import


def test_the_keys_are_those_of_the_builders():
    own = {}
    for build in (build_gated_model, build_slim_model):
        parameters = inspect.signature(build).parameters.values()
        own[build] = {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
    assert set(ADDED_KEYS) == own[build_gated_model] | own[build_slim_model]
    assert set(GATE_KEYS) == own[build_gated_model] - own[build_slim_model]


def test_the_stock_model_inside():
    stock = {'type': 'ImageClassifier', 'backbone': {'type': 'ResNet'}, 'head': {}}
    for added in ({'gates': {}, 'units': 'both'}, {'widths': {}, 'removed': {}}):
        ours = {
            **stock,
            'type': 'mmprune_gates.X',
            'architecture': 'ImageClassifier',
            'input_shape': (3, 8, 8),
            **added,
        }
        assert stock_model(ours) == stock


def test_hooks_of_ours_in_every_form():
    ours = [{'type': 'mmprune_gates.PolarizationHook'}, {'type': PolarizationHook}, PolarizationHook(0.5)]
    assert all(map(is_ours, ours))
    assert not any(map(is_ours, [{'type': 'EMAHook'}, {'type': EMAHook}, EMAHook()]))


def test_imports_keep_what_is_there():
    assert with_our_import(None) == {'imports': ['mmprune_gates']}
    assert with_our_import({'imports': 'mine', 'allow_failed_imports': True}) == {
        'imports': ['mmprune_gates', 'mine'],
        'allow_failed_imports': True,
    }
