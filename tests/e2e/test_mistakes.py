"""User mistakes: exit code 2 and one line with the place, the key and the allowed values, before anything is read."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import ROOT, SAMPLE, TORCHRUN, TRAIN, running

CONFIG = str(ROOT / TRAIN)


@pytest.fixture
def error_of(opensora, capsys: pytest.CaptureFixture[str]):
    """`error_of("train", ...)`: the one line that the command prints when it exits with code 2."""

    def call(*arguments: str, code: int = 2) -> str:
        assert opensora(*arguments) == code
        printed = capsys.readouterr()
        assert printed.out == ""
        lines = printed.err.splitlines()
        assert len(lines) == 1, printed.err
        assert lines[0].startswith("error: ")
        return lines[0]

    return call


@pytest.fixture
def config(tmp_path: Path):
    """Write a config whose weights do not exist, followed by the lines of the test."""

    def write(*lines: str, name: str = "mine.py") -> str:
        nowhere = str(tmp_path / "nowhere")
        text = [
            f"_base_ = [{CONFIG!r}]",
            f"vae = dict(from_pretrained={nowhere!r})",
            f"model = dict(from_pretrained={nowhere!r})",
            f"run_dir = {str(tmp_path / 'run')!r}",
        ]
        (tmp_path / name).write_text("\n".join([*text, *lines]) + "\n", encoding="utf-8")
        return str(tmp_path / name)

    return write


def test_typo_in_the_file_is_reported_before_weights_are_read(error_of, config, tmp_path: Path) -> None:
    """The weights of the config do not exist; an error about them would mean that they were read first."""
    path = config("batchsize = 4")
    for command in ("train", "check"):
        line = error_of(command, path)
        assert f"{path}:5: key 'batchsize': unknown; nearest: 'batch_size'; rename or remove it" in line
        assert "micro_batches" not in line  # a list of all keys would hide the one that is meant
        assert not (tmp_path / "run").exists()


def test_missing_weights_are_reported_if_the_keys_are_right(opensora, config, capsys) -> None:
    assert opensora("train", config()) == 1
    assert "nowhere" in next(line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))


OVERRIDES = [
    (
        "stepz=3",
        r"command line \(.*debug\.py\): key 'stepz': unknown; nearest: 'steps'; rename",
    ),
    ("model.dept=3", r"command line .*: key 'model\.dept': unknown for STDiT; nearest: 'depth'; rename"),
    ("qqq=3", r"key 'qqq': unknown; allowed: background_save, .*warmup_steps; rename or remove it"),
    ("steps=many", r"command line .*: key 'steps': found 'many' \(str\); allowed: int; "),
    ("model.depth=deep", r"command line .*: key 'model\.depth': found 'deep' \(str\); allowed: int; "),
    (
        "scheduler.type=rflo",
        r"key 'scheduler\.type': found 'rflo'; nearest: 'rflow'; allowed: DDIM, .*, iddpm, rflow; ",
    ),
    ("plugin=zero9", r"key 'plugin': found 'zero9'; nearest: 'zero"),
    ("ckpt_every=10", r"key 'ckpt_every': called 'save_every' here; "),
    ("plugin=deepspeed", r"key 'plugin': found 'deepspeed'; allowed: ddp, .*; name one of them"),
    (
        "sp_size=2",
        r"command line .*: key 'sp_size': found 2 on 1 rank\(s\); allowed: a divisor of the number of ranks \(1\)",
    ),
    ("preview_every=2", r"command line .*: keys 'preview_every', 'preview_prompts': found 2 and 0 prompts"),
    ("sp_mode=ring", r"key 'sp_mode': found 'ring' \(str\); allowed: 'dsp' or 'ulysses'"),
    ("micro_batches=0", r"key 'micro_batches': found 0; allowed: a number above 0"),
    ("steps", r"found 'steps'; allowed: key=value"),
]


def test_mistakes_on_the_command_line(error_of) -> None:
    for override, expected in OVERRIDES:
        for command in ("train", "check"):
            line = error_of(command, CONFIG, override)
            assert re.search(expected, line), (command, override, line)


SAMPLE_OVERRIDES = [
    ("modle=3", r"command line .*: key 'modle': unknown; nearest: 'model'"),
    ("num_frames=many", r"key 'num_frames': found 'many'; allowed: a number of frames, or seconds such as 4s"),
    ("resolution=481p", r"command line .*: key 'resolution': found '481p'; allowed: 144p, 240p, .*, or HEIGHTxWIDTH"),
    ("aspect_ratio=16x9", r"key 'aspect_ratio': found '16x9'; allowed: WIDTH:HEIGHT such as 16:9 for a wide picture"),
    ("save_format=avi", r"key 'save_format': found 'avi' \(str\); allowed: 'mp4' or 'hevc' or "),
    ("strength=0", r"key 'strength': found 0; allowed: a number above 0, up to 1"),
    ("keep=0-3", r"command line .*: key 'keep': belongs to 'edit'; set edit=CLIP as well"),
    ("load=none", r"key 'model': missing, and no checkpoint \(key 'load'\) does not record it; add model = "),
]


def test_mistakes_in_sampling(error_of) -> None:
    for override, expected in SAMPLE_OVERRIDES:
        line = error_of("sample", str(ROOT / SAMPLE), override, "--prompt", "a cat")
        assert re.search(expected, line), (override, line)


FLAGS = [
    ("--size=64", "command line: --size: found '64'; allowed: HEIGHTxWIDTH in pixels, such as 64x96"),
    ("--size=64xwide", "command line: --size: found '64xwide'; allowed: HEIGHTxWIDTH"),
    ("--size=0x64", "key 'image_size': found (0, 64); allowed: a number above 0, for each number, or None"),
    ("--steps=few", "key 'scheduler.num_sampling_steps': found 'few' (str); allowed: int"),
    ("--fps=0", "key 'fps': found 0; allowed: a number above 0"),
]


def test_mistaken_flags_of_sampling(error_of, tmp_path: Path) -> None:
    (tmp_path / "sample.py").write_text("scheduler = dict(type='rflow')\n")
    for flag, expected in FLAGS:
        line = error_of("sample", str(tmp_path / "sample.py"), "--prompt", "a cat", flag)
        assert expected in line, (flag, line)


def test_files_that_are_no_configs(error_of, tmp_path: Path) -> None:
    for command in ("train", "check", "sample"):
        assert "no/such.py: " in error_of(command, "no/such.py")
    (tmp_path / "broken.py").write_text("steps = = 3\n")
    assert "broken.py: line 1 " in error_of("train", str(tmp_path / "broken.py"))
    (tmp_path / "config.yaml").write_text("steps: 3\n")
    assert "allowed: .py or .json" in error_of("train", str(tmp_path / "config.yaml"))


def test_mistakes_are_answered_without_torch(tmp_path: Path) -> None:
    """Its import takes seconds; a mistake in a run key is answered before."""
    torch_free = [
        ["train", CONFIG, "stepz=3"],
        ["train", CONFIG, "steps=many"],
        ["train", CONFIG, "batch_size=0"],
        ["train", CONFIG, "preview_every=2"],
        ["check", CONFIG, "save_every=-1"],
        ["sample", str(ROOT / SAMPLE), "--fps=0"],
        ["sample", str(ROOT / SAMPLE), "--size=64"],
        ["sample", str(ROOT / SAMPLE), "--aspect-ratio=wide"],
        ["sample", str(ROOT / SAMPLE), "--first-frame=a.png", "--extend=b.mp4"],
        ["replay", CONFIG, "step=1"],
    ]
    script = (
        "import sys\nfrom opensora.cli.main import main\n"
        f"print([main(arguments) for arguments in {torch_free!r}], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == f"{[2] * len(torch_free)} False\n", done.stderr


def test_ranks_that_cannot_share_the_micro_batches(error_of) -> None:
    line = error_of("check", CONFIG, "world=4")
    assert "set micro_batches=4" in line


def test_impossible_world_sizes(error_of) -> None:
    for world in ("0", "-1", "two", "1.5", "true"):
        assert "key 'world': found " in error_of("check", CONFIG, f"world={world}")


def test_unknown_command(error_of) -> None:
    line = error_of("trian")
    assert "found 'trian'; allowed: bench, check, doctor, " in line


def test_under_torchrun_one_rank_prints_the_error(warm: str, tmp_path: Path) -> None:
    """torchrun adds its own report to our one line; no rank has started to train."""
    mistake = ("micro_batches=3", f"run_dir={tmp_path / 'run'}")
    with running(*TORCHRUN, "-m", "opensora.cli.train", TRAIN, *mistake, python=warm) as command:
        assert command.finish() == 1  # torchrun's own
    assert len(command.lines_with("error: ")) == 1, "\n".join(command.lines)
    assert "found 3 for 2 data ranks; allowed: a multiple of 2; set micro_batches=4" in command.lines_with("error: ")[0]
    assert any("exitcode  : 2" in line for line in command.lines), "\n".join(command.lines)
    assert not (tmp_path / "run").exists()


def test_ranks_of_the_command_itself_end_with_its_sentence_alone(warm: str, tmp_path: Path) -> None:
    with running("-m", "opensora.cli.train", "--ranks", "2", TRAIN, "micro_batches=3", python=warm) as command:
        assert command.finish() == 2
    [line] = command.lines
    assert line.startswith(
        "error: command line (configs/stdit/train/debug.py): key 'micro_batches': found 3 for 2 data "
    )
