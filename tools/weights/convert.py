"""Convert released weights, or those of another size, to a folder that training, sampling and `from_pretrained` read.

Run: python -m tools.weights.convert PixArt-XL-2-512x512.pth pixart-stdit --from pixart-alpha --to STDiT-XL/2 \\
         input_size=[16,32,32] space_scale=0.5

key=value are constructor arguments of the model, or settings of its run: vae.from_pretrained=FOLDER,
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
from mmengine.registry import Registry
from torch import Tensor, nn

from opensora.config import check_component, parse_override
from opensora.errors import ConfigError, OpenSoraError, WeightsError
from opensora.files import expand_home
from opensora.models.build import build_autoencoder, build_denoiser
from opensora.models.conversion.convert_weights import Report, convert_weights
from opensora.models.conversion.families import FAMILIES, Family, other_layout, rule_for
from opensora.models.conversion.infer_arguments import (
    accepted_arguments,
    config_next_to,
    infer_classes,
    infer_sizes,
    infer_widths,
)
from opensora.models.conversion.released_configs import clip_size, released_run
from opensora.models.read_weights import find_weights, read_weights, shared_prefixes, without_prefix
from opensora.models.weights import save_weights
from opensora.registry import MODELS, SCHEDULERS, TEXT_ENCODERS, VAES, class_of, constructor, names

_PARTS = {"vae": VAES, "text_encoder": TEXT_ENCODERS, "scheduler": SCHEDULERS}
_RUN_KEYS = (*_PARTS, "num_frames", "image_size", "fps")
_SIZE = "input_size"  # of the latents, for models of one size
_SIZES = (_SIZE, "sample_size", "video_length")
_TABLE_KEYS = (_SIZE, "space_scale", "time_scale")
_WIDTHS = ("depth", "hidden_size", "num_heads", "caption_channels")
_RECORDED = (
    _SIZE,
    "in_channels",
    "caption_channels",
    "model_max_length",
)  # arguments that a trained checkpoint records


@dataclass(frozen=True)
class Conversion:
    """A model with its weights, the config.json to write next to them, and the report."""

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
    """Read `source`, build `target` and load the weights; with `dry_run` on meta, which checks names and shapes only.

    Raises ConfigError for a wrong name or argument, WeightsError when the weights do not fit.
    """
    family = _family(family_name)
    arguments, run_changes = _split(overrides, family)
    stored = config_next_to(source)
    if (fault := other_layout(stored, family_name)) is not None:
        raise ConfigError(f"--from: found {family_name!r} for {source}, but {fault}")
    state = _without_shared_prefix(read_weights(source), ignore)
    name = _target(family_name, family, target or _type_in(stored, family) or family.default(state))
    target_class = class_of(_registry(family), name).__name__
    rule = rule_for(family, target_class, stored)
    accepted = inspect.signature(constructor(_registry(family), name)).parameters
    translated = accepted_arguments(rule.arguments(stored), accepted)
    if not rule.same:  # of another architecture, its sizes alone are the target's
        stored, translated = {}, {key: value for key, value in translated.items() if key in _WIDTHS}
    inferred = infer_sizes(state, accepted) if rule.same else {}
    if arguments.get(_SIZE, [1])[0] != 1:
        inferred.pop("no_temporal_pos_emb", None)  # an image model becomes one of several frames
    explicit = {**translated, **arguments}
    inferred |= _widths(source, state, explicit, accepted)
    inferred |= infer_classes(state, explicit, accepted) if rule.same else {}
    config = {"type": name, **inferred, **explicit}
    check_component(_registry(family), config, family.registry, lambda key: "command line")
    for key in _RECORDED:
        if key in accepted and key not in config and _is_value(accepted[key].default):
            config[key] = accepted[key].default
    with torch.device("meta") if dry_run else nullcontext():
        model = build_denoiser(config) if family.registry == "model" else build_autoencoder(config)
    report = convert_weights(model, state, rule, str(find_weights(source)), ignore)
    if rule.same:
        _refuse_odd_tables(report, source, arguments)
    config = {**getattr(model, "config", {}), **config} if family.registry == "vae" else config
    run = _run(model, released_run(target_class, family_name, config), stored, arguments, run_changes)
    if run:
        config["run"] = {**run, "converted": {"from": family_name, "file": find_weights(source).name}}
    return Conversion(model, config, report)


def _without_shared_prefix(state: Mapping[str, Tensor], ignore: Sequence[str]) -> dict[str, Tensor]:
    """`state` without the modules that all its names begin with; those to ignore stay as they are."""
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(tuple(ignore))}
    bare = without_prefix(kept, shared_prefixes(kept)[-1])
    return bare | {name: tensor for name, tensor in state.items() if name not in kept}


def _widths(
    source: str, state: Mapping[str, Tensor], explicit: Mapping[str, Any], accepted: Mapping[str, inspect.Parameter]
) -> dict[str, int]:
    """Sizes that the file shows, where they are not given and differ from the target's own.

    Raises ConfigError where the heads of another width are not given, since a file does not show them.
    """
    widths = {
        key: value
        for key, value in infer_widths(state).items()
        if key in accepted and key not in explicit and value != accepted[key].default
    }
    if "hidden_size" in widths and "num_heads" in accepted and "num_heads" not in explicit:
        sizes = " ".join(f"{key}={value}" for key, value in widths.items())
        raise ConfigError(
            f"{source}: has {sizes}, and the number of heads is not in the file; give num_heads=N as it was trained with"
        )
    return widths


def _is_value(default: Any) -> bool:
    """False for the defaults of sizes that a run determines: None or (None, None, None)."""
    return default not in (inspect.Parameter.empty, None) and not (isinstance(default, tuple) and None in default)


def _registry(family: Family) -> Registry:
    return MODELS if family.registry == "model" else VAES


def _family(name: str) -> Family:
    if name not in FAMILIES:
        nearest = difflib.get_close_matches(name, FAMILIES, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"--from: found {name!r}; nearest: {nearest!r}; allowed: {', '.join(FAMILIES)}; name one of them"
        )
    return FAMILIES[name]


def _type_in(stored: Mapping[str, Any], family: Family) -> str | None:
    """The registered name in our own config.json, if the family has a rule for it."""
    name = str(stored.get("type"))
    return name if name in _targets(family) else None


def _targets(family: Family) -> list[str]:
    """Registered names of the classes that the family has rules for."""
    registry = _registry(family)
    return [name for name in names(registry) if class_of(registry, name).__name__ in family.rules]


def _target(family_name: str, family: Family, name: str | None) -> str:
    allowed = _targets(family)
    if name not in allowed:
        fault = f"found {name!r}" if name else "not given, and several are possible"
        raise ConfigError(f"--to: {fault}; allowed with --from {family_name}: {', '.join(allowed)}; name one of them")
    return name


def _split(overrides: Sequence[str], family: Family) -> tuple[dict[str, Any], dict[str, Any]]:
    """Constructor arguments of the target, and dotted changes to the run that is written with it."""
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


def _refuse_odd_tables(report: Report, source: str, arguments: Mapping[str, Any]) -> None:
    """Raise WeightsError for position tables of another size or scale, unless `arguments` set a size or scale."""
    odd = [f"{name}: {how}" for name, how in report.tables.items() if how]
    if odd and not any(key in arguments for key in _TABLE_KEYS):
        raise WeightsError(
            f"{source}: its position tables are not those of the sizes in its config or shapes ({'; '.join(odd)}); "
            f"give {', '.join(_TABLE_KEYS)} that the weights were trained with"
        )


def _run(
    model: nn.Module,
    recipe: Mapping[str, Any],
    stored: Mapping[str, Any],
    arguments: Mapping[str, Any],
    changes: Mapping[str, Any],
) -> dict[str, Any]:
    """The model's run: as recorded with our own weights, otherwise as released; with the changes applied."""
    run = {**(stored["run"] if isinstance(stored.get("run"), dict) else recipe)}
    for dotted, value in changes.items():
        part, _, key = dotted.partition(".")
        if not key:
            run[part] = value
        elif key == "type" and value != run.get(part, {}).get("type"):
            run[part] = {"type": value}  # another component: the old arguments do not apply
        else:
            run[part] = {**run.get(part, {}), key: value}
    for part in _PARTS.keys() & {dotted.partition(".")[0] for dotted in changes}:
        check_component(_PARTS[part], run[part], part, lambda key: "command line")
    if run:
        sizes = _clip(model, run["vae"])
        if "num_frames" not in run or getattr(model, "fixed_size", True) or any(key in arguments for key in _SIZES):
            run |= {key: value for key, value in sizes.items() if key not in changes}
    return run


def _clip(model: nn.Module, vae: Mapping[str, Any]) -> dict[str, Any]:
    """num_frames and image_size of clips for the model's latents; {} for a model of any size."""
    size = getattr(model, _SIZE, None) or [None]
    if None in size:
        return {}
    # A from_pretrained that is not on this disk would be fetched from a hub; the layout is known without.
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
    parser.add_argument(
        "source", type=expand_home, metavar="IN", help="weights file, sharded index, or a folder that holds one"
    )
    parser.add_argument(
        "target", type=expand_home, metavar="OUT", help="folder to write: model.safetensors and config.json"
    )
    parser.add_argument(
        "--from", dest="family", required=True, metavar="FAMILY", help="family of IN; see the list below"
    )
    parser.add_argument("--to", metavar="NAME", help="registered model to fill, such as STDiT-XL/2")
    parser.add_argument("--ignore", action="append", default=[], metavar="PREFIX", help="leave out tensors of IN")
    parser.add_argument("--report", action="store_true", help="list every tensor, not only how many")
    parser.add_argument("--dry-run", action="store_true", help="check names and shapes, write nothing")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="arguments of the model, and settings of its run"
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
