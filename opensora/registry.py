"""Registries: a config's `dict(type=NAME, **arguments)` becomes an object.

`autoload(REGISTRY)` imports every module under the registry's package, so adding a component is adding one file.
"""

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

from mmengine.registry import Registry

from opensora.errors import ConfigError, OpenSoraError

MODELS = Registry("model", scope="opensora", locations=["opensora.models"])
VAES = Registry("vae", scope="opensora", locations=["opensora.models.vae"])
DISCRIMINATORS = Registry("discriminator", scope="opensora", locations=["opensora.models.vae"])
PERCEPTUAL = Registry("perceptual", scope="opensora", locations=["opensora.models.vae"])
TEXT_ENCODERS = Registry("text_encoder", scope="opensora", locations=["opensora.models.text"])
SCHEDULERS = Registry("scheduler", scope="opensora", locations=["opensora.schedulers"])
DATASETS = Registry("dataset", scope="opensora", locations=["opensora.datasets"])
OPTIMIZERS = Registry("optimizer", scope="opensora", locations=["opensora.training"])
LR_SCHEDULERS = Registry("lr_scheduler", scope="opensora", locations=["opensora.training"])
PLUGINS = Registry("plugin", scope="opensora", locations=["opensora.parallel.plugins"])
CACHES = Registry("cache", scope="opensora", locations=["opensora.sampling.caches"])
METRICS = Registry("metric", scope="opensora", locations=["opensora.evaluation.metrics", "opensora.training"])
EXTRACTORS = Registry("extractor", scope="opensora", locations=["opensora.evaluation.extractors"])
REFINERS = Registry("refine", scope="opensora", locations=["opensora.sampling.refiners"])
SAFETY_FILTERS = Registry("safety_filter", scope="opensora", locations=["opensora.sampling.safety_filters"])
PLATFORMS = Registry("platform", scope="opensora", locations=["opensora.platforms"])

CAPTIONERS = Registry("captioner", scope="opensora", locations=["tools.caption"])


@functools.cache
def autoload(registry: Registry) -> None:
    """Import every module below the packages of `registry`; importing registers the components."""
    for location in registry._locations:
        package = importlib.import_module(location)
        for module in pkgutil.walk_packages(package.__path__, prefix=f"{location}."):
            importlib.import_module(module.name)


def names(registry: Registry) -> list[str]:
    """Every registered name, sorted."""
    autoload(registry)
    return sorted(registry.module_dict)


def constructor(registry: Registry, name: str) -> Callable[..., Any]:
    """The class or preset registered as `name`; KeyError names the registry when there is none."""
    autoload(registry)
    create = registry.module_dict.get(name)
    if create is None:
        raise KeyError(f"{registry.name}: no {name!r}; registered: {', '.join(names(registry))}")
    return create


def class_of(registry: Registry, name: str) -> Any:
    """The class that `name` builds, also where `name` is a preset. Raises KeyError like `constructor`."""
    create = constructor(registry, name)
    return getattr(create, "__wrapped_class__", create)


def build(registry: Registry, config: dict[str, Any], **kwargs: object) -> Any:
    """Build `config`'s component; `kwargs` are arguments that the run knows and the config need not repeat.

    Raises ConfigError where the component, or a library below it, refuses the values of the arguments.
    """
    arguments: dict[str, object] = {**config, **kwargs}
    del arguments["type"]
    create = constructor(registry, config["type"])
    try:
        return create(**arguments)
    except (ValueError, IndexError, ZeroDivisionError) as error:
        if isinstance(error, OpenSoraError):  # a ShapeError, a sentence already
            raise ConfigError(f"config: key '{registry.name}': {error}") from error
        words = ", ".join(f"{key}={value!r}" for key, value in config.items() if key != "type")
        raise ConfigError(
            f"config: key '{registry.name}': {config['type']} cannot be built of {words or 'its defaults'}: {error}; "
            "correct the arguments"
        ) from error


def register_preset(registry: Registry, name: str, cls: type, **preset: object) -> None:
    """Register `cls` under `name` with some arguments fixed to a released size; the config may still override them.

    The preset has the signature of `cls`, which config checks read.
    """

    def create(**kwargs: object) -> object:
        return cls(**{**preset, **kwargs})

    signature = inspect.signature(cls)
    create.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[
            parameter.replace(
                kind=inspect.Parameter.KEYWORD_ONLY, default=preset.get(parameter.name, parameter.default)
            )
            for parameter in signature.parameters.values()
        ]
    )
    create.__doc__ = f"{cls.__name__} with {preset}."
    create.__wrapped_class__ = cls  # type: ignore[attr-defined]
    registry.register_module(name=name, module=create)
