"""What a value that a person gives must be, in words and as a test; asked when it is given.

``checked('tick_lr', value, NOT_NEGATIVE)`` returns the value, or says what it must be.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from numbers import Integral, Real
from typing import Any

SHOWN = 60  # characters of a value in a message
LARGEST = 2**31  # whole numbers are below it


@dataclass(frozen=True)
class Rule:
    """What a value must be.

    Attributes:
        words: In words that follow "must be".
        holds: Whether it is; takes values of any type.
    """

    words: str
    holds: Callable[[Any], bool]


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; truth values are none."""
    is_real = isinstance(value, Real) and not isinstance(value, bool)
    return is_real and -inf < value < inf


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number of a size that counts of something have."""
    is_integral = isinstance(value, Integral) and not isinstance(value, bool)
    return is_integral and -LARGEST < value < LARGEST


def is_list(value: Any) -> bool:
    """Whether a value is a sequence, but not a string."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def is_pattern_list(value: Any) -> bool:
    """Whether a value is one shell pattern or a sequence of them."""
    return isinstance(value, str) or (is_list(value) and all(isinstance(one, str) for one in value))


def is_shape(value: Any) -> bool:
    """Whether a value is a sequence of positive whole numbers."""
    return is_list(value) and all(is_whole(size) and size > 0 for size in value)


NUMBER = Rule('a finite number', is_number)
POSITIVE = Rule('a positive number', lambda value: is_number(value) and value > 0)
NOT_NEGATIVE = Rule('a number that is not negative', lambda value: is_number(value) and value >= 0)
SHARE = Rule('a share in (0, 1]', lambda value: is_number(value) and 0 < value <= 1)
PART = Rule('a share in [0, 1]', lambda value: is_number(value) and 0 <= value <= 1)
WHOLE = Rule('a whole number', is_whole)
COUNT = Rule('a whole number of at least 1', lambda value: is_whole(value) and value >= 1)
SWITCH = Rule('True or False', lambda value: isinstance(value, bool))
MAPPING = Rule('a dictionary', lambda value: isinstance(value, Mapping))
PATTERNS = Rule('a shell pattern or a list of them', is_pattern_list)
SHAPE = Rule('a list of positive whole numbers', is_shape)
IMAGE = Rule('three positive whole numbers: channels, height, width', lambda value: is_shape(value) and len(value) == 3)


def pair_of(rule: Rule) -> Rule:
    """Two values of a kind."""
    return Rule(
        f'a list of two, each {rule.words}',
        lambda value: is_list(value) and len(value) == 2 and all(map(rule.holds, value)),
    )


def one_of(choices: Collection[str]) -> Rule:
    """One of several names."""
    return Rule(f'one of {sorted(choices)}', lambda value: isinstance(value, str) and value in choices)


def instance_of(kind: type) -> Rule:
    """An object of a class or of one derived from it."""
    return Rule(f'a {kind.__name__}', lambda value: isinstance(value, kind))


def optional(rule: Rule) -> Rule:
    """None is allowed besides."""
    return Rule(f'{rule.words}, or None', lambda value: value is None or rule.holds(value))


def checked(name: str, value: Any, rule: Rule) -> Any:
    """A value, if it is what it must be.

    Args:
        name: How the person who gives it calls it.
        value: The value.
        rule: What it must be.

    Raises:
        ValueError: It is not.
    """
    if not rule.holds(value):
        raise ValueError(f'{name} must be {rule.words}, got {shown(value)}')
    return value


def check_all(values: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """Check values that have rules.

    Raises:
        ValueError: One is not what it must be.
    """
    for name, rule in rules.items():
        if name in values:
            checked(name, values[name], rule)


def patterns(name: str, value: str | Sequence[str]) -> tuple[str, ...]:
    """Shell patterns; a single string is one of them.

    Raises:
        ValueError: They are something else.
    """
    checked(name, value, PATTERNS)
    return (value,) if isinstance(value, str) else tuple(value)


def shown(value: Any) -> str:
    """A value for a message."""
    text = repr(value)
    return text if len(text) <= SHOWN else f'{text[:SHOWN]}...'
