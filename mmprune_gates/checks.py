"""Rules for values that users give, in words and as a test; checked as soon as a value is given.

``checked('tick_lr', value, NOT_NEGATIVE)`` returns the value, or raises an error that says what it must be.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import inf
from numbers import Integral, Real
from typing import Any

SHOWN = 60  # characters of a value in a message
MOST = 3  # names in a message
LARGEST = 2**31  # whole numbers are smaller in magnitude


@dataclass(frozen=True)
class Rule:
    """A rule for a value.

    Attributes:
        words: The rule in words that follow "must be".
        holds: Whether a value satisfies the rule; takes values of any type.
    """

    words: str
    holds: Callable[[Any], bool]


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; booleans are not."""
    is_real = isinstance(value, Real) and not isinstance(value, bool)
    return is_real and -inf < value < inf


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number of moderate size, as counts are; booleans are not."""
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
    """Rule for a list of two values that each satisfy ``rule``."""
    return Rule(
        f'a list of two, each {rule.words}',
        lambda value: is_list(value) and len(value) == 2 and all(map(rule.holds, value)),
    )


def one_of(choices: Collection[str]) -> Rule:
    """Rule for one of several names."""
    return Rule(f'one of {sorted(choices)}', lambda value: isinstance(value, str) and value in choices)


def instance_of(kind: type) -> Rule:
    """Rule for an object of a class or of one derived from it."""
    return Rule(f'a {kind.__name__}', lambda value: isinstance(value, kind))


def optional(rule: Rule) -> Rule:
    """A rule that also allows None."""
    return Rule(f'{rule.words}, or None', lambda value: value is None or rule.holds(value))


def checked(name: str, value: Any, rule: Rule) -> Any:
    """The value, if it satisfies its rule.

    Args:
        name: The name by which the user gives the value.
        value: The value.
        rule: The rule.

    Raises:
        ValueError: It does not.
    """
    if not rule.holds(value):
        raise ValueError(f'{name} must be {rule.words}, got {shown(value)}')
    return value


def check_all(values: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """Check the values that have rules.

    Raises:
        ValueError: A value violates its rule.
    """
    for name, rule in rules.items():
        if name in values:
            checked(name, values[name], rule)


def refuse_unknown(names: Iterable[str], known: Collection[str]) -> None:
    """Refuse arguments that nothing takes.

    Raises:
        ValueError: There is one; the message has the most similar name, and all.
    """
    for name in names:
        if name not in known:
            similar = get_close_matches(name, known, n=1)
            meant = f' (did you mean {similar[0]!r}?)' if similar else ''
            raise ValueError(f'no argument {name!r}{meant}; it takes {sorted(known)}')


def patterns(name: str, value: str | Sequence[str]) -> tuple[str, ...]:
    """Shell patterns as a tuple; a single string is one pattern.

    Raises:
        ValueError: The value is neither a pattern nor a list of them.
    """
    checked(name, value, PATTERNS)
    return (value,) if isinstance(value, str) else tuple(value)


def listed(names: Sequence[str], between: str = ', ') -> str:
    """The first few names for a message, and how many more there are."""
    more = len(names) - MOST
    return between.join(names[:MOST]) + (f' and {more} more' if more > 0 else '')


def shown(value: Any) -> str:
    """A value for a message."""
    text = repr(value)
    return text if len(text) <= SHOWN else f'{text[:SHOWN]}...'
