import pytest
import torch

from opensora.models.offload import Offload

DEVICE = torch.device("meta")


class Network:
    """Notes where it is moved in a common log; the memory of the device fails it when `fails`."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log, self.fails = name, log, False

    def to(self, device: torch.device) -> None:
        self.log.append(f"{self.name} {'in' if device == DEVICE else 'out'}")
        if self.fails:
            raise RuntimeError("out of memory")


def test_one_network_is_there_at_a_time_and_stays_until_the_next() -> None:
    log: list[str] = []
    text, model = Network("text", log), Network("model", log)
    offload = Offload(DEVICE, lambda: log.append("released"))
    for network in (text, text, model):
        with offload.on_device(network):
            log.append(f"{network.name} works")
    assert log == ["text in", "text works", "text works", "text out", "released", "model in", "model works"]


def test_a_preview_sends_the_model_away_and_brings_it_back() -> None:
    log: list[str] = []
    model, vae = Network("model", log), Network("vae", log)
    offload = Offload(DEVICE)
    with offload.on_device(model):
        with offload.on_device(vae):
            pass
        log.append("model works")
    assert log == ["model in", "model out", "vae in", "vae out", "model in", "model works"]


def test_a_network_that_did_not_fit_is_sent_back() -> None:
    log: list[str] = []
    model, vae = Network("model", log), Network("vae", log)
    offload = Offload(DEVICE)
    model.fails = True
    with pytest.raises(RuntimeError, match="out of memory"), offload.on_device(model):
        pass
    model.fails = False
    with offload.on_device(vae):
        pass
    assert log == ["model in", "model out", "vae in"]
