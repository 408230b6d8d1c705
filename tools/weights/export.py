"""Copy a weights folder, in another precision if wanted, for a repository or a hub.

Run: python -m tools.weights.export RUN/checkpoints/step-00002000/weights/model assets/vae-small --dtype fp16
"""

import argparse
import sys
from collections.abc import Sequence

import torch

from opensora.errors import OpenSoraError, WeightsError
from opensora.files import expand_home
from opensora.models.read_weights import read_weights
from opensora.models.weights import check_values, read_config, save_weights

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def export(source: str, target: str, dtype: str) -> int:
    """Write model.safetensors and config.json of `source` to `target`; returns the bytes of the tensors.

    Raises WeightsError when the source is damaged, the target cannot be written, or a value does not fit `dtype`.
    """
    tensors = {}
    state = read_weights(source)
    check_values(state, state, source)
    for name, tensor in state.items():
        tensors[name] = tensor.to(DTYPES[dtype]) if tensor.is_floating_point() else tensor
        if not torch.isfinite(tensors[name]).all():
            raise WeightsError(f"{source}: '{name}' holds values that {dtype} cannot; allowed: --dtype bf16 or fp32")
    config = read_config(source)
    if isinstance(config.get("run"), dict):  # the folders of this machine say nothing to others
        config["run"] = {key: value for key, value in config["run"].items() if key != "origin"}
    save_weights(target, tensors, config)
    return sum(tensor.nbytes for tensor in tensors.values())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=expand_home, metavar="IN", help="a weights folder: config.json and weights")
    parser.add_argument("target", type=expand_home, metavar="OUT", help="folder to write")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32", help="precision of the copy")
    arguments = parser.parse_args(argv)
    try:
        size = export(arguments.source, arguments.target, arguments.dtype)
    except OpenSoraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.target}: {size / 2**20:.1f} MiB in {arguments.dtype}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
