"""Turn released weights, or those of another size, into a folder that training, sampling and `from_pretrained` read.

Run: python -m tools.weights.convert PixArt-XL-2-512x512.pth pixart-stdit --from pixart-alpha --to STDiT-XL/2 \\
         input_size=[16,32,32] space_scale=0.5

key=value are constructor arguments of the model, or change what it runs with: vae.from_pretrained=FOLDER,
text_encoder.model_max_length=200, scheduler.num_sampling_steps=50, num_frames, image_size, fps.
"""

import argparse
import difflib
import inspect
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from opensora.config import check_component, parse_override
from opensora.errors import ConfigError, OpenSoraError, WeightsError
from opensora.models.build import build_autoencoder, build_denoiser
from opensora.models.conversion.convert_weights import Report, fill
from opensora.models.conversion.families import FAMILIES, Family
from opensora.models.conversion.infer_arguments import arguments_in, classes_in, config_beside, sizes_in
from opensora.models.conversion.released_configs import clip_size, run_for
from opensora.models.weights import find_weights, read_weights, save_weights
from opensora.registry import MODELS, SCHEDULERS, TEXT_ENCODERS, VAES, constructor, names

_PARTS = {"vae": VAES, "text_encoder": TEXT_ENCODERS, "scheduler": SCHEDULERS}
_RUN_KEYS = (*_PARTS, "num_frames", "image_size", "fps")
_SIZE = "input_size"  # latents, of models that take one size only
_SIZES = (_SIZE, "sample_size", "video_length")
_TABLE_KEYS = (_SIZE, "space_scale", "time_scale")
_SAID = (_SIZE, "in_channels", "caption_channels", "model_max_length")  # as a trained checkpoint records them


@dataclass(frozen=True)
class Conversion:
    """A model with the weights in it, the config.json that belongs beside it, and what was done."""

    model: nn.Module
    config: dict[str, Any]
    report: Report


def convert(
    source: str,
    family_name: str,
    target: str | None = None,
    overrides: Sequence[str] = (),
    ignore: Sequence[str] = (),
    dry_run: bool = False,
) -> Conversion:
    """Read `source`, build `target` and fill it; `dry_run` builds on meta, so that only names and shapes are checked.

    Raises ConfigError for a wrong name or argument, WeightsError when the weights do not fit.
    """
    family = _family(family_name)
    arguments, run_changes = _split(overrides, family)
    state, stored = read_weights(source), config_beside(source)
    name = _target(family_name, family, target or _type_in(stored, family) or family.default(state))
    build = constructor(_registry(family), name)
    rule, accepted = family.rules[_class_of(build)], inspect.signature(build).parameters
    stored = stored if rule.same else {}
    told = sizes_in(state, accepted) if rule.same else {}
    if arguments.get(_SIZE, [1])[0] != 1:
        told.pop("no_temporal_pos_emb", None)  # an image model is made into one of several frames
    given = {**arguments_in(rule.arguments(stored), accepted), **arguments}
    told |= classes_in(state, given, accepted) if rule.same else {}
    config = {"type": name, **told, **given}
    check_component(_registry(family), config, family.registry, lambda key: "command line")
    for key in _SAID:
        if key in accepted and key not in config and _is_said(accepted[key].default):
            config[key] = accepted[key].default
    with torch.device("meta") if dry_run else nullcontext():
        model = build_denoiser(config) if family.registry == "model" else build_autoencoder(config)
    report = fill(model, state, rule, str(find_weights(source)), ignore)
    if rule.same:
        _refuse_odd_tables(report, source, arguments)
    config = {**getattr(model, "config", {}), **config} if family.registry == "vae" else config
    run = _run(model, run_for(_class_of(build), family_name, config), stored, arguments, run_changes)
    if run:
        config["run"] = {**run, "converted": {"from": family_name, "file": find_weights(source).name}}
    return Conversion(model, config, report)


def _is_said(default: Any) -> bool:
    """Whether a default tells a value: sizes that a run decides are None or (None, None, None)."""
    return default not in (inspect.Parameter.empty, None) and not (isinstance(default, tuple) and None in default)


def _registry(family: Family) -> Any:
    return MODELS if family.registry == "model" else VAES


def _class_of(build: Any) -> str:
    """The class behind a registered name, which may be a preset of it."""
    return getattr(build, "__wrapped_class__", build).__name__


def _family(name: str) -> Family:
    if name not in FAMILIES:
        nearest = difflib.get_close_matches(name, FAMILIES, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"--from: found {name!r}; nearest: {nearest!r}; allowed: {', '.join(FAMILIES)}; name one of them"
        )
    return FAMILIES[name]


def _type_in(stored: Mapping[str, Any], family: Family) -> str | None:
    """The registered name in a config.json of ours, if it is one that the family fills."""
    name = str(stored.get("type"))
    known = name in names(_registry(family))
    return name if known and _class_of(constructor(_registry(family), name)) in family.rules else None


def _target(family_name: str, family: Family, name: str | None) -> str:
    registry = _registry(family)
    allowed = [entry for entry in names(registry) if _class_of(constructor(registry, entry)) in family.rules]
    if name not in allowed:
        found = f"found {name!r}" if name else "not given, and several are possible"
        raise ConfigError(f"--to: {found}; allowed with --from {family_name}: {', '.join(allowed)}; name one of them")
    return name


def _split(overrides: Sequence[str], family: Family) -> tuple[dict[str, Any], dict[str, Any]]:
    """Constructor arguments of the target, and dotted changes to the run that is written beside it."""
    arguments: dict[str, Any] = {}
    changes: dict[str, Any] = {}
    for override in overrides:
        dotted, value = parse_override(override)
        first = dotted.partition(".")[0]
        if family.registry == "model" and first in _RUN_KEYS and (first in _PARTS) == ("." in dotted):
            changes[dotted] = value
        elif "." in dotted:
            raise ConfigError(
                f"command line: key '{dotted}': found a dotted key; allowed: {', '.join(f'{part}.ARGUMENT' for part in _PARTS)} "
                "for models, and arguments of the target as they are; rename or remove it"
            )
        else:
            arguments[dotted] = value
    return arguments, changes


def _refuse_odd_tables(report: Report, source: str, given: Mapping[str, Any]) -> None:
    """Tables of another size or scale are meant only by who asked for another size or scale."""
    odd = [f"{name}: {how}" for name, how in report.tables.items() if how]
    if odd and not any(key in given for key in _TABLE_KEYS):
        raise WeightsError(
            f"{source}: its position tables are not those of the sizes in its config or shapes ({'; '.join(odd)}); "
            f"give {', '.join(_TABLE_KEYS)} that the weights are meant for"
        )


def _run(
    model: nn.Module,
    recipe: Mapping[str, Any],
    stored: Mapping[str, Any],
    given: Mapping[str, Any],
    changes: Mapping[str, Any],
) -> dict[str, Any]:
    """What the model runs with: as recorded beside our own weights, otherwise the recipe's, with the changes."""
    run = {**(stored["run"] if isinstance(stored.get("run"), dict) else recipe)}
    for dotted, value in changes.items():
        part, _, key = dotted.partition(".")
        if not key:
            run[part] = value
        elif key == "type" and value != run.get(part, {}).get("type"):
            run[part] = {"type": value}  # another component: the arguments of the one before mean nothing to it
        else:
            run[part] = {**run.get(part, {}), key: value}
    for part in _PARTS.keys() & {dotted.partition(".")[0] for dotted in changes}:
        check_component(_PARTS[part], run[part], part, lambda key: "command line")
    if run:
        sizes = _clip(model, run["vae"])
        meant = "num_frames" not in run or getattr(model, "fixed_size", True) or any(key in given for key in _SIZES)
        run |= {key: value for key, value in sizes.items() if meant and key not in changes}
    return run


def _clip(model: nn.Module, vae: Mapping[str, Any]) -> dict[str, Any]:
    """num_frames and image_size of the clips whose latents the model was built for; {} where it takes any."""
    size = getattr(model, _SIZE, None) or [None]
    if None in size:
        return {}
    # What is not on this disk would be asked of a hub; the architecture is known without.
    known = {key: value for key, value in vae.items() if key != "from_pretrained" or Path(value).exists()}
    with torch.device("meta"):
        built = build_autoencoder(known)
    clip = clip_size(size, built.compression)
    fits = tuple(built.latent_size((clip["num_frames"], *clip["image_size"]))) == tuple(size)
    return clip if fits else {}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.weights.convert",
        description=__doc__,
        epilog="families:\n" + "\n".join(f"  {name:15} {family.about}" for name, family in FAMILIES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="IN", help="weights file, sharded index, or a folder that holds one")
    parser.add_argument("target", metavar="OUT", help="folder to write: model.safetensors and config.json")
    parser.add_argument("--from", dest="family", required=True, metavar="FAMILY", help="what IN is; see the list below")
    parser.add_argument("--to", metavar="NAME", help="registered model to fill, such as STDiT-XL/2")
    parser.add_argument("--ignore", action="append", default=[], metavar="PREFIX", help="leave out tensors of IN")
    parser.add_argument("--report", action="store_true", help="list every tensor, not only how many")
    parser.add_argument("--dry-run", action="store_true", help="check names and shapes, write nothing")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="arguments of the model, and of what it runs with"
    )
    arguments = parser.parse_intermixed_args(argv)
    source, target = arguments.source, Path(arguments.target)
    try:
        if target.resolve() in (find_weights(source).resolve(), find_weights(source).parent.resolve()):
            raise ConfigError(
                f"OUT: {target} holds the weights to convert; they would be replaced; name another folder"
            )
        done = convert(
            source, arguments.family, arguments.to, arguments.overrides, arguments.ignore, dry_run=arguments.dry_run
        )
        print("\n".join(done.report.lines(full=arguments.report)))
        if not arguments.dry_run:
            save_weights(target, done.model.state_dict(), done.config)
    except OpenSoraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    parameters = sum(parameter.numel() for parameter in done.model.parameters()) / 1e6
    wrote = "would be written" if arguments.dry_run else "written"
    print(f"{target}: {done.config['type']}, {parameters:.1f} M parameters, {wrote}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
