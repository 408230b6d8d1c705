"""From the keys of a sampling config to its shortcuts."""

from opensora.sampling.caches.tea_cache import TeaCache
from opensora.sampling.shortcuts import Shortcuts, chosen, shortcuts_of
from opensora.schema import SampleRun


def test_a_config_without_shortcuts_is_exact() -> None:
    assert shortcuts_of(SampleRun()) == Shortcuts()
    assert chosen(SampleRun()) == {}


def test_a_config_chooses_shortcuts() -> None:
    cache = {"type": "TeaCache", "threshold": 0.2}
    run = SampleRun(guidance_interval=[0.2, 0.8], cache=cache)
    shortcuts = shortcuts_of(run)
    assert (shortcuts.guidance_interval, shortcuts.null_every) == ((0.2, 0.8), 1)
    assert isinstance(shortcuts.cache, TeaCache)
    assert shortcuts.cache.threshold == 0.2
    assert chosen(run) == {"guidance_interval": [0.2, 0.8], "cache": cache}
