"""The cache of one clip: each value is made once, and a cache holds its own clip's."""

from opensora.models.layers.clip_cache import ClipCache, keep


def test_each_value_is_made_once_per_cache() -> None:
    made: list[str] = []

    def value(name: str) -> str:
        made.append(name)
        return f"{name} {len(made)}"

    one, two = ClipCache(), ClipCache()
    assert [keep(one, "text", lambda: value("text")) for _ in range(3)] == ["text 1"] * 3
    assert keep(one, "size", lambda: value("size")) == "size 2"
    assert keep(two, "text", lambda: value("text")) == "text 3"
    assert [keep(None, "text", lambda: value("text")) for _ in range(2)] == ["text 4", "text 5"]
