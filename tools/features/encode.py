"""Encode the clips and captions of a training config once, so that training needs neither autoencoder nor text encoder.

Run: torchrun --nproc_per_node 2 -m tools.features.encode configs/stdit/train/debug.py features variants=2
     torchrun --nproc_per_node 2 -m opensora.cli.train configs/stdit/train/debug.py \\
         load_video_features=features load_text_features=features

The same command goes on where it was stopped, and after a change encodes what is not there yet: an item is named by the
bytes of its video, its place in it, the settings of the data set, and the network with its weights. One file per item,
written beside and renamed. Every rank takes its share of the rows. key=value are those of the training command, besides
  variants=N   draws of each row to store, where start, crop or flip are random; training takes one of them at random
  only=video   or only=text: one of the two
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import data

from opensora.cli.run_main import report_on_main_rank_only, run_main
from opensora.config import load, parse_override
from opensora.datasets.base import ClipSize, SizedDataset
from opensora.datasets.buckets import DROPPED
from opensora.datasets.feature_store import (
    CacheableDataset,
    ClipKeys,
    FeatureStore,
    FileHashes,
    read_json,
    settings_file,
    size_name,
    write_json,
)
from opensora.errors import BadClip, ConfigError, DataError, OpenSoraError
from opensora.models.build import DTYPES, build_autoencoder, load_autoencoder
from opensora.models.codec import Codec
from opensora.parallel.watchdog.process_exit import exit_process
from opensora.parallel.world import World
from opensora.progress_bar import ProgressBar
from opensora.registry import DATASETS, TEXT_ENCODERS, build
from opensora.rng import generator
from opensora.schema import TrainRun
from opensora.training import cached_features
from opensora.training.checkpoint import resolve_part
from opensora.training.clip_plan import ClipPlan, make_clip_plan, require_fixed_size


@dataclass
class Count:
    """What became of the items of one kind on this rank."""

    made: int = 0
    kept: int = 0  # were there already
    bad: int = 0

    def __str__(self) -> str:
        return f"{self.made} encoded, {self.kept} already there, {self.bad} bad"


@dataclass(frozen=True)
class Job:
    """One item of a row: to be made, there already, or impossible."""

    key: str | None  # None: not even its name is known
    video_CTHW: Tensor | None = None  # None: there already, or bad
    fps: float = 0.0
    bad: str = ""


@dataclass(frozen=True)
class Wanted:
    """The clips that a run will ask a data set for: rows [n] and, of each, the number of its size."""

    names: ClipKeys
    rows: NDArray[np.int64]
    size_of: NDArray[np.int64]
    sizes: list[ClipSize]

    def share(self, rank: int, size: int) -> "Wanted":
        return replace(self, rows=self.rows[rank::size], size_of=self.size_of[rank::size])


class Jobs(data.Dataset[list[Job] | OpenSoraError]):
    """The clips that are wanted, decoded where their items are missing; for loader processes.

    An error for the user is given back: raised in a loader process it would reach him as a traceback.
    """

    def __init__(self, wanted: Wanted, store: FeatureStore):
        self.wanted = wanted
        self.store = store

    def __len__(self) -> int:
        return len(self.wanted.rows)

    def __getitem__(self, index: int) -> list[Job] | OpenSoraError:
        row, size = int(self.wanted.rows[index]), self.wanted.sizes[self.wanted.size_of[index]]
        try:
            return [self._job(row, size, variant) for variant in range(self.wanted.names.variants)]
        except OpenSoraError as error:
            return error

    def _job(self, row: int, size: ClipSize, variant: int) -> Job:
        key, dataset = None, self.wanted.names.dataset
        try:
            key, draw = self.wanted.names.of(row, size, variant)
            if self.store.has(key):
                return Job(key)
            own = size == (dataset.num_frames, *dataset.image_size)
            clip = dataset.clip(row, draw) if own else cast(SizedDataset, dataset).clip(row, draw, size)
        except BadClip as error:
            return Job(key, bad=str(error))
        return Job(key, clip.video_CTHW, clip.fps)


def encode_clips(run: TrainRun, folder: str, wanted: Sequence[Wanted], world: World) -> Count:
    """Encode this rank's share of the clips, each alone, so that its numbers do not depend on its neighbours."""
    config, count = resolve_part(run.vae), Count()
    vae = load_autoencoder(build_autoencoder(config), config)
    codec = Codec(vae, nn.Identity(), world.device, DTYPES[run.dtype])  # type: ignore[arg-type]
    network = cached_features.video_network(run, FileHashes(Path(folder), remember=True))
    store = _prepare(folder, cached_features.VIDEO, network, latent_channels=vae.latent_channels)
    for each in wanted:
        _tell_settings(store, each, vae)
        jobs_of_rows = Jobs(each.share(world.global_rank, world.size), store)
        title = f"clips of {each.names.dataset.where}"
        with ProgressBar(title, len(jobs_of_rows), visible=world.is_main) as progress:
            for jobs in data.DataLoader(jobs_of_rows, batch_size=None, num_workers=run.num_workers):
                if isinstance(jobs, OpenSoraError):
                    raise jobs
                for job in jobs:
                    _keep(job, codec, store, count, progress)
                progress.advance()
    return count


def _keep(job: Job, codec: Codec, store: FeatureStore, count: Count, progress: ProgressBar) -> None:
    if job.bad:
        count.bad += 1
        progress.print(f"skipped {job.bad}")
        if job.key is not None:
            store.refuse(job.key, job.bad)
    elif job.video_CTHW is None or job.key is None:
        count.kept += 1
    else:
        moments = codec.encode_moments(job.video_CTHW[None], [generator(0, "spatial latents", job.key)])
        store.write(job.key, {"moments": moments[0]}, fps=repr(job.fps))
        count.made += 1


def encode_captions(run: TrainRun, folder: str, captions: Sequence[str], world: World) -> Count:
    """Encode this rank's share of the captions that are not stored yet, each alone."""
    config, count = dict(run.text_encoder or {}), Count()
    content_hash = cached_features.caption_key(config)
    encoder = build(TEXT_ENCODERS, config).load()
    codec = Codec(nn.Identity(), encoder, world.device, DTYPES[run.dtype], cache_bytes=0)
    network = cached_features.text_network(run, FileHashes(Path(folder), remember=True))
    store = _prepare(folder, cached_features.TEXT, network, tells=encoder.denoiser_args)
    if encoder.denoiser_args["condition"] != "text":
        captions = [caption for caption in captions if caption]  # no class goes by no name
    different = sorted({content_hash(caption): caption for caption in captions}.items())[
        world.global_rank :: world.size
    ]
    with ProgressBar("captions", len(different), visible=world.is_main) as progress:
        for key, caption in different:
            if store.has(key):
                count.kept += 1
            else:
                found = codec.encode_text([caption])
                mask = {} if found.mask_BL is None else {"mask": found.mask_BL}
                store.write(key, {"text": found.text_B1LC, **mask})
                count.made += 1
            progress.advance()
    return count


def _prepare(folder: str, kind: str, network: dict[str, Any], **about: Any) -> FeatureStore:
    """The store of a network, with what it tells of its features written down."""
    store = FeatureStore.place(folder, kind, network)
    if store.about() is None:
        write_json(store.path / "about.json", {"network": network, **about})
    return store


def _tell_settings(store: FeatureStore, wanted: Wanted, vae: Any) -> None:
    """Write down what will be found in the store, beside what is there already."""
    dataset = wanted.names.dataset
    file = settings_file(store, dataset)
    known = read_json(file) or {}
    sizes = {size_name(size): list(vae.latent_size(size)) for size in wanted.sizes}
    own = {"variants": wanted.names.variants, "fps": dataset.fps}
    made = {
        "settings": dataset.settings(),
        "latent_sizes": {**known.get("latent_sizes", {}), **sizes},
        "data_sets": {**known.get("data_sets", {}), dataset.where: own},
        **own,
    }
    if known != made:
        write_json(file, made)


def named_clips(dataset: CacheableDataset, contents: FileHashes, variants: int | None, where: str) -> ClipKeys:
    """The names of a data set's items; ConfigError where `variants` is needed. where: the config and its key."""
    drawn = ", ".join(dataset.drawn())
    if drawn and variants is None:
        raise ConfigError(
            f"{where}: each clip is drawn anew ({drawn}), which cannot be stored; allowed: for example "
            "start=center, crop=center and flip=False there, or variants=N to store N draws of each row; "
            "choose one"
        )
    return ClipKeys(dataset, contents, variants if drawn and variants is not None else 1)


def wanted_clips(run: TrainRun, names: ClipKeys, clips: ClipPlan | None) -> Wanted:
    """All that a run asks for until its last step: every row at its one size, or those that `bucket_config` chooses.

    clips: None for validation, which has one size.
    """
    dataset = names.dataset
    order = None if clips is None else clips.order
    if order is None:
        rows = np.arange(len(dataset), dtype=np.int64)
        return Wanted(names, rows, np.zeros_like(rows), [(dataset.num_frames, *dataset.image_size)])
    buckets, epochs = len(order.buckets), 1 if order.buckets.certain else order.locate(run.steps - 1)[0] + 1
    pairs = np.empty(0, dtype=np.int64)
    for epoch in range(epochs):
        chosen = order.choices(epoch).astype(np.int64)
        rows = np.flatnonzero(chosen != DROPPED)
        pairs = np.union1d(pairs, rows * buckets + chosen[rows])
    numbers, size_of = np.unique(pairs % buckets, return_inverse=True)
    return Wanted(names, pairs // buckets, size_of, [order.size(int(number)) for number in numbers])


def encode(
    run: TrainRun, where: str, folder: str, world: World, *, variants: int | None = None, only: str | None = None
) -> dict[str, Count]:
    """Fill `folder` for a run whose dtype is chosen; what this rank did. Nothing is encoded before all is checked.

    Raises ConfigError where clips cannot be stored, DataError where the folder cannot be written.
    """
    plan = make_clip_plan(run, build(DATASETS, run.dataset), where)
    datasets = [plan.dataset]
    if run.validation_dataset is not None:
        datasets.append(build(DATASETS, run.validation_dataset))
        require_fixed_size(datasets[1], f"{where}: key 'validation_dataset'")
        datasets[1].report().require_rows()
    work: dict[str, Callable[[], Count]] = {}
    if only != cached_features.TEXT:
        contents = FileHashes(Path(folder), remember=True)
        storable = [cached_features.require_storable(dataset, where) for dataset in datasets]
        if variants is not None and not any(dataset.drawn() for dataset in storable):
            raise ConfigError(
                f"command line: variants={variants}, but a row of {plan.dataset.where} is always the same clip; remove it"
            )
        names = [
            named_clips(dataset, contents, variants, f"{where}: key {key!r}")
            for key, dataset in zip(("dataset", "validation_dataset"), storable, strict=False)
        ]
        wanted = [wanted_clips(run, each, plan if each.dataset is plan.dataset else None) for each in names]
        work[cached_features.VIDEO] = lambda: encode_clips(run, folder, wanted, world)
    if only != cached_features.VIDEO:
        if not all(hasattr(dataset, "captions") for dataset in datasets):
            raise ConfigError(f"{where}: key 'dataset': its captions are not known beforehand; use only=video")
        captions = [caption for dataset in datasets for row in range(len(dataset)) for caption in dataset.captions(row)]
        captions += run.preview_prompts
        captions += [""] * (run.warmup_buckets or bool(run.preview_prompts))  # a warm-up has no words, guidance none
        work[cached_features.TEXT] = lambda: encode_captions(run, folder, captions, world)
    return {kind: encode_kind() for kind, encode_kind in work.items()}


def encode_command(config: str, folder: str, overrides: Sequence[str]) -> int:
    """Check, encode this rank's share, say what was done; returns the exit code."""
    from opensora import log
    from opensora.models.layers.kernels import use_kernels
    from opensora.parallel import world as worlds
    from opensora.platforms import select

    with report_on_main_rank_only():
        own = dict(parse_override(each) for each in overrides if each.startswith(("variants=", "only=")))
        variants, only = own.pop("variants", None), own.pop("only", None)
        if variants is not None and (type(variants) is not int or variants < 1):
            raise ConfigError(f"command line: key 'variants': found {variants!r}; allowed: a whole number from 1")
        if only not in (None, cached_features.VIDEO, cached_features.TEXT):
            raise ConfigError(f"command line: key 'only': found {only!r}; allowed: 'video' or 'text'; choose one")
        run = load(config, [each for each in overrides if not each.startswith(("variants=", "only="))], TrainRun).run
        if run.task != "diffusion":
            raise ConfigError(f"{config}: key 'task': found {run.task!r}; allowed: 'diffusion', which reads features")
        rank, size = worlds.rank_from_environment()
    log.setup(rank)
    platform = select()
    use_kernels(platform)
    run = replace(run, dtype=platform.choose_dtype(run.dtype))
    world = worlds.init(platform, run.timeout_seconds)
    counts = encode(run, config, folder, world, variants=variants, only=only)
    share = f"rank {rank} of {size}: " if size > 1 else ""
    for kind, count in counts.items():
        print(f"{share}{kind}: {count}")
    worlds.shutdown()
    # Of several ranks one may have had nothing but bad rows, and leaving with an error would end the others.
    if size == 1 and any(count.bad and not count.made and not count.kept for count in counts.values()):
        raise DataError(f"{config}: key 'dataset': no clip could be encoded; see the rows above; mend the manifest")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="CONFIG", help="a training config")
    parser.add_argument("folder", metavar="FOLDER", help="where features lie; may hold others already")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for training; variants=N, only=video")
    arguments = parser.parse_args(argv)
    return run_main(lambda: encode_command(arguments.config, arguments.folder, arguments.overrides))


if __name__ == "__main__":
    exit_process(main())
