"""The settings that all methods share: the target, the limits, the cost and the criterion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

from mmprune_gates.budget import Cost, Criterion, Goal, Limits
from mmprune_gates.checks import Rule, check_all, instance_of, optional, refuse_unknown

Own = TypeVar('Own', bound='Settings')
TRACE = ('forward', 'train_forward', 'units', 'attention')  # arguments of a pruner that are no settings
RULES = {'cost': optional(instance_of(Cost)), 'criterion': optional(instance_of(Criterion))}


@dataclass(frozen=True, kw_only=True)
class Settings(Limits):
    """Settings of a run, the limits on what may close among them, checked at once; the methods add their own.

    Attributes:
        rules: Name -> what the method's own settings must be.
        target_macs, target, target_ms: How much is kept; one of them, see :class:`~mmprune_gates.budget.Goal`.
        cost: The cost that the target is a share of; multiply-accumulates by default.
        criterion: Scores channels; each method has a default of its own.

    Raises:
        ValueError: A value is out of range.
    """

    rules: ClassVar[Mapping[str, Rule]] = {}
    target_macs: float | None = None
    target: float | None = None
    target_ms: float | None = None
    cost: Cost | None = None
    criterion: Criterion | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_all(vars(self), {**RULES, **self.rules})
        self.goal.check_cost(self.cost)

    @classmethod
    def names(cls) -> set[str]:
        """Names of the settings."""
        return {field.name for field in fields(cls)}

    @classmethod
    def split(cls: type[Own], given: Mapping[str, Any]) -> tuple[Own, dict[str, Any]]:
        """The settings among the keyword arguments of a pruner, and those that say what is traced.

        Raises:
            ValueError: An argument is neither, or a value is out of range.
        """
        refuse_unknown(given, {*cls.names(), *TRACE})
        traced = {name: given[name] for name in TRACE if name in given}
        settings = {name: value for name, value in given.items() if name not in traced}
        return cls(**settings), traced

    @property
    def goal(self) -> Goal:
        """How much of the model is kept."""
        return Goal.of(vars(self))
