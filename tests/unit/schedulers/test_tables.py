import numpy as np
import pytest
import torch

from opensora.errors import ConfigError
from opensora.schedulers.tables import keep_timesteps, make_betas, make_tables


@pytest.mark.parametrize(
    ("steps", "respacing", "kept"),
    [
        (5, "", [0, 1, 2, 3, 4]),
        (10, "4", [0, 3, 6, 9]),
        (10, "1", [0]),
        (10, "2,1", [0, 4, 5]),
        (10, [2, 1, 2], [0, 3, 4, 7, 9]),
        (11, "1,1,1", [0, 4, 8]),  # sections of 4, 4 and 3
        (10, "ddim5", [0, 2, 4, 6, 8]),
        (10, "ddim4", [0, 3, 6, 9]),
    ],
)
def test_kept_timesteps(steps: int, respacing: str | list[int], kept: list[int]) -> None:
    assert keep_timesteps(steps, respacing) == kept


@pytest.mark.parametrize(
    ("respacing", "message"),
    [
        ("11", "11 .* 10"),
        ("0", "0 "),
        ("2,9", "9 .* 5"),
        ("ddim7", "no whole stride"),
        ("ddimfive", "whole numbers"),
        ("a,b", "whole numbers"),
    ],
)
def test_impossible_respacing_is_refused(respacing: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        keep_timesteps(10, respacing)


def test_linear_betas_keep_their_sum_for_any_number_of_steps() -> None:
    betas = make_betas("linear", 100)
    np.testing.assert_allclose(betas[[0, -1]], [1e-3, 0.2])
    np.testing.assert_allclose(betas.sum(), make_betas("linear", 1000).sum())


def test_cosine_betas_follow_the_cosine() -> None:
    betas = make_betas("squaredcos_cap_v2", 50)
    assert betas.max() == 0.999
    half = np.cumprod(1 - betas)[24]
    np.testing.assert_allclose(half, np.cos(0.508 / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2)


def test_unknown_schedule_is_refused() -> None:
    with pytest.raises(ConfigError, match="noise_schedule"):
        make_betas("sigmoid", 10)  # type: ignore[arg-type]


def test_shorter_process_keeps_the_signal_left() -> None:
    betas = make_betas("linear", 1000)
    kept = keep_timesteps(1000, "7")
    tables = make_tables(betas, kept, torch.float64)
    np.testing.assert_allclose(tables.alphas_cumprod, np.cumprod(1 - betas)[kept])
    # The posterior's mean of a noiseless path is the path itself.
    path = torch.sqrt(tables.alphas_cumprod)
    mean = tables.posterior_mean_coef1 + tables.posterior_mean_coef2 * path
    torch.testing.assert_close(mean, torch.sqrt(tables.alphas_cumprod_prev))


def test_index_of_timestep() -> None:
    tables = make_tables(make_betas("linear", 1000), keep_timesteps(1000, "4"), torch.float32)
    assert tables.index_of(torch.tensor([999.0, 0.0, 333.0])).tolist() == [3, 0, 1]
    with pytest.raises(ValueError, match="only those kept"):
        tables.index_of(torch.tensor([334.0]))
