"""Conditions on frames as plain choices: a first or last frame, a clip to extend, two to connect, one to edit.

Each choice becomes references and a mask strategy (mask_strategy.py); nothing else in sampling knows the choices.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from opensora.errors import ConfigError
from opensora.schema import SampleRun

if TYPE_CHECKING:  # the import takes seconds, and contradictions are found without it
    from opensora.sampling.mask_strategy import FramePlacement
    from opensora.sampling.requests import Prompt, ReferencesOf

LatentFrames = Callable[[int], int]  # pixel frames -> latent frames of the autoencoder
HALF = 0.5  # the strength of an edit that names none


class ReferenceWords(NamedTuple):
    """References and strategy, as the keys of a config hold them."""

    reference_path: str
    mask_strategy: str


@dataclass(frozen=True)
class Conditions:
    """The choices of a run; see schema.py. `of` checks them."""

    where: str
    first_frame: str | None = None
    last_frame: str | None = None
    extend: str | None = None
    backward: bool = False
    connect: Sequence[str] | None = None
    edit: str | None = None
    strength: float | None = None
    keep: str | None = None
    loop: int = 1
    overlap: int | None = (
        None  # latent frames of a clip that is extended or connected; None: 5, or half of a shorter clip
    )

    @classmethod
    def of(cls, run: SampleRun, where: str) -> "Conditions | None":
        """The choices of a run, None where it makes none. ConfigError where they contradict each other.

        where: the config, for messages.
        """
        names = ("first_frame", "last_frame", "extend", "connect", "edit")
        chosen = [name for name in names if getattr(run, name) is not None]
        for key, owner, on in (
            ("backward", "extend", run.backward),
            ("strength", "edit", run.strength is not None),
            ("keep", "edit", run.keep is not None),
        ):
            if on and owner not in chosen:
                raise ConfigError(f"{where}: key '{key}': belongs to '{owner}'; set {owner}=CLIP as well, or remove it")
        if not chosen:
            return None
        if run.reference_path or str(run.mask_strategy).strip():
            other = "reference_path" if run.reference_path else "mask_strategy"
            raise ConfigError(
                f"{where}: keys '{chosen[0]}', '{other}': both say which frames a video is built on; keep one of them"
            )
        begins = {"first_frame", "connect", "edit", *(() if run.backward else ("extend",))}
        ends = {"last_frame", "connect", "edit", *(("extend",) if run.backward else ())}
        for place, which in (("begin", begins), ("end", ends)):
            both = [name for name in chosen if name in which]
            if len(both) > 1:
                raise ConfigError(
                    f"{where}: keys {', '.join(map(repr, both))}: each says how the video is to {place}; keep one of them"
                )
        if run.connect is not None and len(run.connect) != 2:
            raise ConfigError(
                f"{where}: key 'connect': found {len(run.connect)} files; allowed: two, to begin and to end with; correct it"
            )
        return cls(
            where,
            **{name: getattr(run, name) for name in (*names, "backward", "strength", "keep", "loop")},
            overlap=run.condition_frame_length,
        )

    def words(self, num_frames: int, latent_frames: LatentFrames) -> ReferenceWords:
        """References and strategy for a clip of `num_frames`; ConfigError for a file that cannot serve, or is too short."""
        from opensora.sampling.mask_strategy import FramePlacement
        from opensora.sampling.reference_frames import LONGEST_OVERLAP, probe_reference

        files: list[str] = []
        groups: list[FramePlacement] = []
        total = latent_frames(num_frames)
        for key, path, at_end in self._placed():
            frames = probe_reference(path, f"{self.where}: key '{key}'").num_frames
            available = latent_frames(frames)
            # One frame of a picture, or of a clip that is named as a first or last frame; else as much as loops repeat.
            wanted = (
                1 if key.endswith("_frame") else self.overlap or min(LONGEST_OVERLAP, max(1, total // 2), available)
            )
            if wanted > available:
                raise ConfigError(
                    f"{self.where}: key '{key}': {path} has {frames} frames, which are {available} latent frames; "
                    f"condition_frame_length is {wanted}; give a longer clip or a smaller number"
                )
            # The end of a clip begins the next one, and its start ends the one before.
            start = 0 if at_end or key.endswith("_frame") else -wanted
            groups.append(
                FramePlacement(self.loop - 1 if at_end else 0, len(files), start, -wanted if at_end else 0, wanted)
            )
            files.append(path)
        if self.edit is not None:
            files.append(self.edit)
            groups += self._edited(self.edit, num_frames, latent_frames)
        return ReferenceWords(
            ";".join(files), ";".join(",".join(f"{number:g}" for number in group) for group in groups)
        )

    def _placed(self) -> Iterator[tuple[str, str, bool]]:
        """(key, file, True for the end of the video) of all choices but an edit."""
        begin, end = self.connect or (None, None)
        for key, path, at_end in (
            ("first_frame", self.first_frame, False),
            ("last_frame", self.last_frame, True),
            ("extend", self.extend, self.backward),
            ("connect", begin, False),
            ("connect", end, True),
        ):
            if path is not None:
                yield key, path, at_end

    def _edited(self, path: str, num_frames: int, latent_frames: LatentFrames) -> "Iterator[FramePlacement]":
        """The whole clip at its strength, then the frames that stay."""
        from opensora.sampling.mask_strategy import FramePlacement, frames_of_latents
        from opensora.sampling.reference_frames import probe_reference

        frames = probe_reference(path, f"{self.where}: key 'edit'").num_frames
        if frames < num_frames:
            raise ConfigError(
                f"{self.where}: key 'edit': {path} has {frames} frames, the video {num_frames}; allowed: a clip of "
                f"{num_frames} frames or more; give a longer one, or num_frames={frames}"
            )
        total = latent_frames(num_frames)
        yield FramePlacement(length=total, edit_ratio=HALF if self.strength is None else self.strength)
        if self.keep is None:
            return
        kept = frames_in(self.keep, num_frames, f"{self.where}: key 'keep'")
        ends = [frames_of_latents(length, latent_frames) for length in range(1, total + 1)]
        spans = [range(start, end) for start, end in zip([0, *ends], ends)]
        stays = [kept.issuperset(span) for span in spans]
        if not any(stays):
            written = ", ".join(f"{span[0]}-{span[-1]}" if len(span) > 1 else str(span[0]) for span in spans[:4])
            raise ConfigError(
                f"{self.where}: key 'keep': found {self.keep!r}, which holds no whole latent frame; allowed: frames that the "
                f"autoencoder codes together, {written}{', ...' if total > 4 else ''}; correct it"
            )
        for stay, run in groupby(range(total), key=lambda number: stays[number]):
            numbers = list(run)
            if stay:
                yield FramePlacement(reference_start=numbers[0], target_start=numbers[0], length=len(numbers))


def references_of_prompts(run: SampleRun, where: str, latent_frames: LatentFrames) -> "ReferencesOf":
    """The function that gives a prompt its references and strategy: a cell of its row counts, an empty one takes the run's.

    It raises ConfigError, which names the row where that says something of its own, as `Conditions` does.
    """

    def references_of(prompt: "Prompt", reference_path: str, mask_strategy: str, num_frames: int) -> tuple[str, str]:
        cells = {name: getattr(prompt, name) for name in ("reference_path", "mask_strategy", "loop")}
        own = {name: value for name, value in cells.items() if value is not None} | dict(prompt.choices)
        values = {"reference_path": reference_path, "mask_strategy": mask_strategy} | own
        conditions = Conditions.of(replace(run, **values), prompt.where if own else where)
        if conditions is None:
            return values["reference_path"], values["mask_strategy"]
        return conditions.words(num_frames, latent_frames)

    return references_of


def frames_in(ranges: str, num_frames: int, where: str) -> set[int]:
    """Numbers of the frames in "0-8,24-32", from 0 and with both ends; ConfigError for another form or beyond the clip."""
    frames: set[int] = set()
    for part in ranges.split(","):
        first, dash, last = part.strip().partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last) < num_frames):
            raise ConfigError(
                f"{where}: found {part.strip()!r} in {ranges!r}; allowed: frames from 0 to {num_frames - 1} as FIRST-LAST, "
                "joined by commas, such as 0-8,24-32; correct it"
            )
        frames.update(range(int(first), int(last) + 1))
    return frames
