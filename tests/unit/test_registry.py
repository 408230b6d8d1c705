"""Names become objects; presets keep the signature that configs are checked against."""

import inspect

import pytest
from mmengine.registry import Registry

from opensora.errors import ConfigError
from opensora.models.shape_checks import ShapeError
from opensora.registry import (
    LR_SCHEDULERS,
    MODELS,
    OPTIMIZERS,
    PLATFORMS,
    PLUGINS,
    SCHEDULERS,
    build,
    constructor,
    names,
    register_preset,
)


class Thing:
    def __init__(self, size: int, depth: int = 2, label: str = "x") -> None:
        self.values = (size, depth, label)


@pytest.fixture
def registry() -> Registry:
    things = Registry("thing", scope="opensora", locations=[])
    things.register_module(name="Thing", module=Thing)
    register_preset(things, "Thing-XL", Thing, size=9, depth=28)
    return things


def test_build_takes_config_and_arguments_of_the_run(registry: Registry) -> None:
    config = {"type": "Thing", "depth": 5}
    assert build(registry, config, size=3).values == (3, 5, "x")
    assert config == {"type": "Thing", "depth": 5}


def test_preset_is_overridden_by_config(registry: Registry) -> None:
    assert build(registry, {"type": "Thing-XL"}).values == (9, 28, "x")
    assert build(registry, {"type": "Thing-XL", "depth": 1, "label": "y"}).values == (9, 1, "y")
    parameters = inspect.signature(constructor(registry, "Thing-XL")).parameters
    assert list(parameters) == ["size", "depth", "label"]
    assert parameters["size"].default == 9


def test_an_unknown_name_lists_the_known_ones(registry: Registry) -> None:
    with pytest.raises(KeyError, match=r"thing.*'Thin'.*Thing, Thing-XL"):
        build(registry, {"type": "Thin"})


class Refusing:
    def __init__(self, error: type[Exception]) -> None:
        raise error("size 3 is odd")


def refusal(error: type[Exception]) -> str:
    registry = Registry("thing", scope="opensora", locations=[])
    registry.register_module(name="Refusing", module=Refusing)
    with pytest.raises(ConfigError) as caught:
        build(registry, {"type": "Refusing", "error": error})
    return str(caught.value)


def test_values_that_a_library_refuses_become_a_sentence() -> None:
    for error in (ValueError, IndexError, ZeroDivisionError):
        assert refusal(error) == (
            f"config: key 'thing': Refusing cannot be built of error={error!r}: size 3 is odd; correct the arguments"
        )
    assert refusal(ShapeError) == "config: key 'thing': size 3 is odd"  # a sentence already
    with pytest.raises(AttributeError):  # a mistake in the code keeps its traceback
        refusal(AttributeError)


def test_autoload_finds_what_the_packages_register() -> None:
    assert {"STDiT", "STDiT-XL/2", "STDiT-B/2", "STDiT-S/2"} <= set(names(MODELS))
    assert {"rflow", "iddpm"} <= set(names(SCHEDULERS))
    assert names(PLUGINS) == ["ddp", "fsdp", "hybrid", "zero1", "zero1-seq", "zero2", "zero2-seq"]
    assert names(PLATFORMS) == ["cpu", "cuda", "npu"]
    assert names(OPTIMIZERS) == ["AdamW"]


@pytest.mark.parametrize("name", ["constant", "cosine", "linear"])
def test_every_schedule_starts_warm_and_stays_between_0_and_1(name: str) -> None:
    assert names(LR_SCHEDULERS) == ["constant", "cosine", "linear"]
    factor = build(LR_SCHEDULERS, {"type": name}, steps=20, warmup_steps=4)
    assert factor(0) == 0.25
    assert all(0 <= factor(step) <= 1 for step in range(40))
