"""Encode the clips and captions of a training config once, so that training needs neither autoencoder nor text encoder.

Run: torchrun --nproc_per_node 2 -m tools.features.encode configs/stdit/train/debug.py features variants=2
     torchrun --nproc_per_node 2 -m opensora.cli.train configs/stdit/train/debug.py \\
         load_video_features=features load_text_features=features

The same command goes on where it was stopped, and after a change encodes what is not there yet: an item is named by the
bytes of its video, its place in it, the settings of the data set, and the network with its weights. Each item is one
file, written atomically. Every rank takes its share of the rows. key=value are those of the training command, besides
  variants=N   draws of each row to store, where start, crop or flip are random; training takes one of them at random
  only=video   or only=text: one of the two
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeGuard, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import data

from opensora.cli.run_main import report_on_main_rank_only, run_main
from opensora.config import load, parse_override
from opensora.datasets.base import CaptionedDataset, ClipSize, Dataset, SizedDataset
from opensora.datasets.buckets import DROPPED
from opensora.datasets.feature_store import CacheableDataset, ClipKeys, FeatureStore, FileHashes, size_name
from opensora.errors import BadClip, ConfigError, DataError, OpenSoraError
from opensora.models.build import build_autoencoder, load_autoencoder
from opensora.models.codec import Codec
from opensora.models.frame_counts import require_frame_counts
from opensora.parallel.watchdog.process_exit import exit_process
from opensora.parallel.world import World
from opensora.progress_bar import ProgressBar
from opensora.registry import DATASETS, TEXT_ENCODERS, build
from opensora.rng import generator
from opensora.schema import TrainRun
from opensora.training.cached_features import (
    TEXT,
    VIDEO,
    caption_key,
    require_cacheable,
    text_network,
    video_network,
)
from opensora.training.checkpoint import resolve_part
from opensora.training.clip_plan import ClipPlan, make_clip_plan, require_fixed_size
from opensora.types import DTYPES


@dataclass
class Count:
    """The items of one kind on this rank."""

    made: int = 0
    kept: int = 0  # stored before
    bad: int = 0

    def __str__(self) -> str:
        return f"{self.made} encoded, {self.kept} already there, {self.bad} bad"


@dataclass(frozen=True)
class Item:
    """One variant of a row: a clip to encode, an item that is stored already, or a bad clip."""

    key: str | None  # None: the row is so bad that it has no key
    video_CTHW: Tensor | None = None  # None: stored already, or bad
    fps: float = 0.0
    bad: str = ""


@dataclass(frozen=True)
class ClipList(data.Dataset[list[Item] | OpenSoraError]):
    """The clips that a run takes from a data set: rows [n], and the index in `sizes` of each.

    As a data set of a loader, decodes each clip whose item is not stored yet. User errors are returned, not raised:
    DataLoader would turn them into a worker traceback.
    """

    keys: ClipKeys
    rows: NDArray[np.int64]
    size_of: NDArray[np.int64]
    sizes: list[ClipSize]
    store: FeatureStore | None = None

    def share(self, rank: int, size: int, store: FeatureStore) -> "ClipList":
        return replace(self, rows=self.rows[rank::size], size_of=self.size_of[rank::size], store=store)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> list[Item] | OpenSoraError:
        row, size = int(self.rows[index]), self.sizes[self.size_of[index]]
        try:
            return [self._item(row, size, variant) for variant in range(self.keys.variants)]
        except OpenSoraError as error:
            return error

    def _item(self, row: int, size: ClipSize, variant: int) -> Item:
        assert self.store is not None
        key, dataset = None, self.keys.dataset
        try:
            key, draw = self.keys.of(row, size, variant)
            if self.store.has(key):
                return Item(key)
            if size == (dataset.num_frames, *dataset.image_size):
                clip = dataset.clip(row, draw)
            else:
                clip = cast(SizedDataset, dataset).clip(row, draw, size)
        except BadClip as error:
            return Item(key, bad=str(error))
        return Item(key, clip.video_CTHW, clip.fps)


def encode_clips(run: TrainRun, folder: str, lists: Sequence[ClipList], world: World) -> Count:
    """Encode this rank's share of the clips, each alone, so that its numbers do not depend on its neighbors."""
    config, count = resolve_part(run.vae), Count()
    vae = load_autoencoder(build_autoencoder(config), config)
    codec = Codec(vae, nn.Identity(), world.device, DTYPES[run.dtype])  # type: ignore[arg-type]
    for clips in lists:
        require_frame_counts(vae, [("num_frames", frames) for frames, *_ in clips.sizes], clips.keys.dataset.where)
    network = video_network(run, FileHashes(Path(folder), remember=True))
    store = FeatureStore.create(folder, VIDEO, network, latent_channels=vae.latent_channels)
    for clips in lists:
        dataset = clips.keys.dataset
        latent_sizes = {size_name(size): list(vae.latent_size(size)) for size in clips.sizes}
        store.add_clip_settings(dataset, latent_sizes, clips.keys.variants)
        share = clips.share(world.global_rank, world.size, store)
        with ProgressBar(f"clips of {dataset.where}", len(share), visible=world.is_main) as progress:
            for items in data.DataLoader(share, batch_size=None, num_workers=run.num_workers):
                if isinstance(items, OpenSoraError):
                    raise items
                for item in items:
                    if item.bad:
                        progress.print(f"skipped {item.bad}")
                    _store_clip(item, codec, store, count)
                progress.advance()
    return count


def _store_clip(item: Item, codec: Codec, store: FeatureStore, count: Count) -> None:
    if item.bad:
        count.bad += 1
        if item.key is not None:
            store.mark_bad(item.key, item.bad)
    elif item.video_CTHW is None or item.key is None:
        count.kept += 1
    else:
        moments = codec.encode_moments(item.video_CTHW[None], [generator(0, "spatial latents", item.key)])
        store.write(item.key, {"moments": moments[0]}, fps=repr(item.fps))
        count.made += 1


def encode_captions(run: TrainRun, folder: str, captions: Sequence[str], world: World) -> Count:
    """Encode this rank's share of the captions that are not stored yet, each alone."""
    config, count = dict(run.text_encoder or {}), Count()
    key_of = caption_key(config)
    encoder = build(TEXT_ENCODERS, config).load()
    codec = Codec(nn.Identity(), encoder, world.device, DTYPES[run.dtype], cache_bytes=0)  # type: ignore[arg-type]
    network = text_network(run, FileHashes(Path(folder), remember=True))
    store = FeatureStore.create(folder, TEXT, network, tells=encoder.denoiser_args)  # the key of stores made before
    if encoder.denoiser_args["condition"] != "text":
        captions = [caption for caption in captions if caption]  # no class has an empty name
    unique = sorted({key_of(caption): caption for caption in captions}.items())[world.global_rank :: world.size]
    with ProgressBar("captions", len(unique), visible=world.is_main) as progress:
        for key, caption in unique:
            if store.has(key):
                count.kept += 1
            else:
                text = codec.encode_text([caption])
                mask = {} if text.mask_BL is None else {"mask": text.mask_BL}
                store.write(key, {"text": text.text_B1LC, **mask})
                count.made += 1
            progress.advance()
    return count


def clip_keys(dataset: CacheableDataset, file_hashes: FileHashes, variants: int | None, where: str) -> ClipKeys:
    """The keys of a data set's items. Raises ConfigError if `variants` is missing. where: the config and its key."""
    random = ", ".join(dataset.random_settings())
    if random and variants is None:
        raise ConfigError(
            f"{where}: each clip is drawn anew ({random}), which cannot be stored; allowed: for example "
            "start=center, crop=center and flip=False there, or variants=N to store N draws of each row; "
            "choose one"
        )
    return ClipKeys(dataset, file_hashes, variants if random and variants is not None else 1)


def list_clips(run: TrainRun, keys: ClipKeys, clips: ClipPlan | None) -> ClipList:
    """The clips of all steps of a run: every row at its one size, or those that `bucket_config` chooses.

    clips: None for validation, which has one size.
    """
    dataset = keys.dataset
    order = None if clips is None else clips.order
    if order is None:
        rows = np.arange(len(dataset), dtype=np.int64)
        return ClipList(keys, rows, np.zeros_like(rows), [(dataset.num_frames, *dataset.image_size)])
    buckets, epochs = len(order.buckets), 1 if order.buckets.certain else order.locate(run.steps - 1)[0] + 1
    pairs = np.empty(0, dtype=np.int64)  # row * buckets + bucket
    for epoch in range(epochs):
        chosen = order.choices(epoch).astype(np.int64)
        rows = np.flatnonzero(chosen != DROPPED)
        pairs = np.union1d(pairs, rows * buckets + chosen[rows])
    numbers, size_of = np.unique(pairs % buckets, return_inverse=True)
    return ClipList(keys, pairs // buckets, size_of, [order.size(int(number)) for number in numbers])


def _has_captions(dataset: Dataset) -> TypeGuard[CaptionedDataset]:
    return hasattr(dataset, "captions")


def encode(
    run: TrainRun, where: str, folder: str, world: World, *, variants: int | None = None, only: str | None = None
) -> dict[str, Count]:
    """Fill `folder` for a run whose dtype is chosen; returns this rank's counts. All is checked before anything is encoded.

    Raises ConfigError if clips cannot be stored, DataError if the folder cannot be written.
    """
    plan = make_clip_plan(run, build(DATASETS, run.dataset), where)
    datasets = [plan.dataset]
    if run.validation_dataset is not None:
        datasets.append(build(DATASETS, run.validation_dataset))
        require_fixed_size(datasets[1], f"{where}: key 'validation_dataset'")
        datasets[1].report().require_rows()
    work: dict[str, Callable[[], Count]] = {}
    if only != TEXT:
        file_hashes = FileHashes(Path(folder), remember=True)
        cacheable = [require_cacheable(dataset, where) for dataset in datasets]
        if variants is not None and not any(dataset.random_settings() for dataset in cacheable):
            raise ConfigError(
                f"command line: variants={variants}, but a row of {plan.dataset.where} is always the same clip; remove it"
            )
        lists = [
            list_clips(run, clip_keys(dataset, file_hashes, variants, f"{where}: key {key!r}"), clips)
            for key, dataset, clips in zip(("dataset", "validation_dataset"), cacheable, (plan, None), strict=False)
        ]
        work[VIDEO] = lambda: encode_clips(run, folder, lists, world)
    if only != VIDEO:
        captioned = [dataset for dataset in datasets if _has_captions(dataset)]
        if len(captioned) < len(datasets):
            raise ConfigError(f"{where}: key 'dataset': its captions are not known beforehand; use only=video")
        captions = [
            caption for dataset in captioned for row in range(len(dataset)) for caption in dataset.captions(row)
        ]
        captions += run.preview_prompts
        captions += [""] * (run.warmup_buckets or bool(run.preview_prompts))  # of warm-up clips, and for guidance
        work[TEXT] = lambda: encode_captions(run, folder, captions, world)
    return {kind: encode_kind() for kind, encode_kind in work.items()}


def _own_options(overrides: Sequence[str]) -> tuple[int | None, str | None, list[str]]:
    """variants, only, and the overrides of the training config."""
    own = [each for each in overrides if each.startswith(("variants=", "only="))]
    options = dict(map(parse_override, own))
    variants, only = options.get("variants"), options.get("only")
    if variants is not None and (type(variants) is not int or variants < 1):
        raise ConfigError(f"command line: key 'variants': found {variants!r}; allowed: a whole number from 1")
    if only not in (None, VIDEO, TEXT):
        raise ConfigError(f"command line: key 'only': found {only!r}; allowed: 'video' or 'text'; choose one")
    return variants, only, [each for each in overrides if each not in own]


def encode_command(config: str, folder: str, overrides: Sequence[str]) -> int:
    """Check, encode this rank's share, print what was done; returns the exit code."""
    from opensora import log
    from opensora.parallel import world as worlds
    from opensora.platforms import select

    with report_on_main_rank_only():
        variants, only, overrides = _own_options(overrides)
        run = load(config, overrides, TrainRun).run
        if run.task != "diffusion":
            raise ConfigError(f"{config}: key 'task': found {run.task!r}; allowed: 'diffusion', which reads features")
        rank, size = worlds.rank_from_environment()
    log.setup(rank)
    platform = select()
    run = replace(run, dtype=platform.choose_dtype(run.dtype))
    world = worlds.init(platform, run.timeout_seconds)
    counts = encode(run, config, folder, world, variants=variants, only=only)
    share = f"rank {rank} of {size}: " if size > 1 else ""
    for kind, count in counts.items():
        print(f"{share}{kind}: {count}")
    worlds.shutdown()
    # Of several ranks, one may have had bad rows only; its error exit would end the others.
    if size == 1 and any(count.bad and not count.made and not count.kept for count in counts.values()):
        raise DataError(f"{config}: key 'dataset': no clip could be encoded; see the rows above; correct the manifest")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="CONFIG", help="a training config")
    parser.add_argument("folder", metavar="FOLDER", help="folder of the features; may hold others already")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for training; variants=N, only=video")
    arguments = parser.parse_args(argv)
    return run_main(lambda: encode_command(arguments.config, arguments.folder, arguments.overrides))


if __name__ == "__main__":
    exit_process(main())
