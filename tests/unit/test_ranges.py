import inspect
import math
import typing

import pytest
from mmengine.registry import Registry

from opensora import registry
from opensora.ranges import BELOW_1, FINITE, NOT_NEGATIVE, POSITIVE, SHARE, Range, numbers_in, range_of


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "words"),
    [
        (POSITIVE, [0.1, 10**400], [0, -1], "a number above 0"),
        (NOT_NEGATIVE, [0, 3], [-1e-9], "0 or more"),
        (SHARE, [0, 1], [-0.1, 1.1], "0 to 1"),
        (BELOW_1, [0, 0.999], [1, -1], "from 0 to below 1"),
        (FINITE, [-5, 5e300], [], "a finite number"),
        (Range(1, above_low=True), [1.1], [1, 0], "a number above 1"),
        (Range(0, 2, above_low=True), [2], [0, 3], "a number above 0, up to 2"),
    ],
)
def test_range_and_its_words(allowed: Range, inside: list[float], outside: list[float], words: str) -> None:
    assert all(value in allowed for value in inside)
    assert not any(value in allowed for value in [*outside, math.inf, -math.inf, math.nan])
    assert str(allowed) == words


def test_numbers_at_any_depth() -> None:
    assert list(numbers_in({"a": [1, (2.5, "3")], "b": {"c": 4}, "d": True, "e": None})) == [1, 2.5, 4]


def test_defaults_of_all_components_are_in_their_ranges() -> None:
    """A new argument whose default is 0 or less needs a line in ARGUMENTS."""
    wrong = []
    for each in (value for value in vars(registry).values() if isinstance(value, Registry)):
        for name in registry.names(each):
            hints = typing.get_type_hints(getattr(registry.class_of(each, name), "__init__", None))
            for argument in inspect.signature(registry.constructor(each, name)).parameters.values():
                if argument.default is argument.empty:
                    continue
                hint = str(hints.get(argument.name))
                allowed = range_of(argument.name, "int" in hint and "float" not in hint)
                if any(number not in allowed for number in numbers_in(argument.default)):
                    wrong.append(f"{name}.{argument.name}={argument.default}: {allowed}")
    assert wrong == []
