"""Aspect-ratio tables and bucket choices against numbers recorded from the original implementation."""

import json
import re
from typing import Any, get_args

import numpy as np
import pytest

from opensora.config import as_dict, load
from opensora.datasets import aspect
from opensora.datasets.buckets import Buckets
from opensora.errors import ConfigError
from opensora.schema import TrainRun
from tests.parity.golden import Golden, directories
from tests.support.command import ROOT


def read(golden: Golden, name: str) -> Any:
    return json.loads((golden.path / name).read_text(encoding="utf-8"))


def version(golden: Golden) -> Any:
    """Open-Sora's version, from the directory's name: os1_2_aspect holds 1.2's."""
    match = re.match(r"os(\d)_(\d)", golden.name)
    assert match is not None
    text = f"{match[1]}.{match[2]}"
    assert text in get_args(aspect.Version)
    return text


def has_tables(golden: Golden) -> bool:
    return (golden.path / "tables.json").is_file() and "resolutions" in read(golden, "tables.json")


def has_queries(golden: Golden) -> bool:
    return (golden.path / "queries.json").is_file() and bool(
        {"closest", "image_size"} & set(read(golden, "queries.json"))
    )


def has_buckets(golden: Golden) -> bool:
    return any("bucket_config" in read(golden, path.name) for path in golden.path.glob("stage*.json"))


@pytest.mark.parametrize("golden", directories(has_tables, what="aspect tables"))
def test_aspect_tables(golden: Golden) -> None:
    recorded = read(golden, "tables.json")
    tables = aspect.tables(version(golden))
    assert set(tables) == set(recorded["resolutions"])
    for name, table in recorded["resolutions"].items():
        assert tables[name].num_pixels == table["num_pixels"], name
        recorded_sizes = [(ratio, tuple(size)) for ratio, size in table["table"].items()]
        assert list(tables[name].sizes.items()) == recorded_sizes, name
    names = aspect.ratio_names(version(golden))
    assert [aspect.exact_ratio(written) for written in names] == recorded["AR"]
    if "ARV" in recorded:  # the names as numbers; 0.375 is not rounded there
        assert ["0.38" if value == 0.375 else f"{value:.2f}" for value in recorded["ARV"]] == list(names.values())
    if "ASPECT_RATIO_MAP" in recorded:
        assert names == recorded["ASPECT_RATIO_MAP"]
    if "NUM_FRAMES_MAP" in recorded:
        assert recorded["NUM_FRAMES_MAP"] == aspect.NUM_FRAMES


@pytest.mark.parametrize("golden", directories(has_queries, what="aspect ratio queries"))
def test_closest_ratio_and_size(golden: Golden) -> None:
    queries, release = read(golden, "queries.json"), version(golden)
    assert queries.get("closest") or queries.get("image_size")
    for query in queries.get("closest", []):
        name = query["resolution"]
        ratio = aspect.closest_ratio(query["h"], query["w"], name, release)
        assert ratio == query["closest"], query
        assert list(aspect.resolution(name, release).sizes[ratio]) == query["hw"]
    for query in queries.get("image_size", []):
        if query["out"] is None:
            with pytest.raises(ConfigError, match="aspect ratio"):
                aspect.image_size(query["resolution"], query["ar"], release)
        else:
            assert list(aspect.image_size(query["resolution"], query["ar"], release)) == query["out"]


@pytest.mark.parametrize("golden", directories(has_buckets, what="buckets"))
def test_bucket_choices(golden: Golden) -> None:
    for file in sorted(golden.path.glob("stage*.json")):
        recorded = read(golden, file.name)
        config = {
            name: {int(length): entry for length, entry in lengths.items()}
            for name, lengths in recorded["bucket_config"].items()
        }
        buckets = Buckets(config, version(golden))
        assert len(buckets) == recorded["num_bucket"]
        assert list(buckets.lengths) == recorded["order"]
        pairs = {(name, int(t)): i for name, lengths in recorded["bucket_index"].items() for t, i in lengths.items()}
        assert buckets.pairs == pairs
        assert recorded["samples"]
        for sample in recorded["samples"]:
            epoch_seed = sample["seed"] - sample["index"] * recorded["num_bucket"]
            assert buckets.row_seed(epoch_seed, 0, sample["index"]) == sample["seed"]
            bucket = buckets.choose(
                sample["T"], sample["H"], sample["W"], frame_interval=sample["frame_interval"], seed=sample["seed"]
            )
            assert (None if bucket is None else list(bucket)) == sample["bucket_id"], sample
            if bucket is not None:
                assert list(buckets.size(bucket)) == sample["thw"]
                assert buckets.batch_size(bucket) == sample["batch_size"]
        for interval in {sample["frame_interval"] for sample in recorded["samples"]}:
            samples = [sample for sample in recorded["samples"] if sample["frame_interval"] == interval]
            columns = (np.array([sample[key] for sample in samples]) for key in ("T", "H", "W", "seed"))
            frames, height, width, seeds = columns
            numbers = buckets.choose_many(frames, height, width, frame_interval=interval, seeds=seeds)
            names = [None if number < 0 else list(buckets.all[number]) for number in numbers]
            assert names == [sample["bucket_id"] for sample in samples]


@pytest.mark.parametrize("golden", directories(has_buckets, what="buckets"))
def test_recipes_have_the_recorded_buckets(golden: Golden) -> None:
    models = {"1.1": "stdit2", "1.2": "stdit3"}
    for file in sorted(golden.path.glob("stage*.json")):
        recorded = read(golden, file.name)
        if version(golden) not in models or not recorded["config"].endswith("/train/stage1.py"):
            continue
        config = str(ROOT / f"configs/{models[version(golden)]}/train/buckets.py")
        buckets = as_dict(load(config, [], TrainRun).run)["bucket_config"]
        assert buckets == recorded["bucket_config"]
        assert list(buckets) == list(recorded["bucket_config"])
