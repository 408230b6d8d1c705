"""The table of docs/models.md is the one the command prints, and no registered size is missing from it."""

from opensora.registry import MODELS, VAES, names
from tests.support.command import ROOT
from tools.weights.families import AUTOENCODERS, DENOISERS, parameters, table


def test_docs_hold_the_printed_table() -> None:
    assert "\n".join(table()) in (ROOT / "docs/models.md").read_text(encoding="utf-8")


def test_every_registered_size_is_in_it() -> None:
    assert {row.name for row in DENOISERS} == {name for name in names(MODELS) if "/" in name}
    shown = {row.name for row in AUTOENCODERS}
    assert {name for name in names(VAES) if name != "VAE_Temporal"} == shown  # the class behind VAE_Temporal_SD


def test_counts_are_those_of_the_releases() -> None:
    by_name = {row.name: row for row in [*DENOISERS, *AUTOENCODERS]}
    assert parameters(VAES, by_name["CausalVAEModel"]) == 246_859_499
    assert parameters(MODELS, by_name["LatteT2V-XL/122"]) == 1_057_246_880
