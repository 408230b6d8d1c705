"""One file per kind of device; `select()` picks the one this machine has."""

from opensora.errors import ConfigError
from opensora.platforms.base import Feature, Platform
from opensora.registry import PLATFORMS, build, constructor, names

__all__ = ["Feature", "Platform", "device_features", "select"]


def select(name: str | None = None) -> Platform:
    """The platform called `name`, or the fastest one that works here.

    Raises ConfigError when `name` is unknown or its device is missing.
    """
    known = names(PLATFORMS)
    if name is not None and name not in known:
        raise ConfigError(f"platform: {name!r} is unknown; allowed: {', '.join(known)}; correct the name")
    usable = [each for each in known if constructor(PLATFORMS, each).is_available()]  # type: ignore[attr-defined]
    if name is not None and name not in usable:
        raise ConfigError(
            f"platform: {name!r} finds no device or driver here; usable: {', '.join(usable)}; choose one of these"
        )
    fastest = max(usable, key=lambda each: constructor(PLATFORMS, each).priority)  # type: ignore[attr-defined]
    return build(PLATFORMS, {"type": name or fastest})


def device_features() -> list[Feature]:
    """Packages that one kind of device needs besides the common ones."""
    per_device = (constructor(PLATFORMS, name).features for name in names(PLATFORMS))  # type: ignore[attr-defined]
    return [feature for features in per_device for feature in features]
