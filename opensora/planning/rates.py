"""Stated rates of accelerators: what plans reckon with, nothing that was measured here.

The comments name the data sheets that the figures go back to. They were not compared with the sheets line by line; the
network figures of l40s, rtx4090 and ascend-910b and the float32 rate of ascend-910b are the least certain.
TFLOP/s are dense, without sparsity. Bandwidths are one way, where data sheets give both ways added up.
"""

from dataclasses import dataclass

from opensora.errors import ConfigError

EFFICIENCY = 0.4  # assumed share of the peak that a training step of a transformer reaches
LINK_EFFICIENCY = 0.8  # assumed share of a link's bandwidth that collectives reach


@dataclass(frozen=True)
class Gpu:
    """One accelerator of a machine of `per_node`."""

    name: str
    bf16_tflops: float
    fp32_tflops: float
    memory_gb: float  # 10^9 bytes, as sold
    memory_gbs: float  # GB/s of its own memory
    node_gbs: float  # GB/s one way to the others of the machine
    network_gbs: float  # GB/s one way to other machines, of the network card it has to itself
    per_node: int = 8

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gb * 1e9)

    def tflops(self, dtype: str) -> float:
        return self.bf16_tflops if dtype == "bf16" else self.fp32_tflops


_ALL = (
    # NVIDIA H100 SXM data sheet: 1,979 TFLOP/s bf16 with sparsity, NVLink 900 GB/s both ways; DGX H100: 400 Gbit/s each
    Gpu("h100", 989.4, 66.9, 80, 3350, 450, 50),
    # NVIDIA H200 data sheet: as H100 with more and faster memory
    Gpu("h200", 989.4, 66.9, 141, 4800, 450, 50),
    # H800: H100 with NVLink of 400 GB/s both ways
    Gpu("h800", 989.4, 66.9, 80, 3350, 200, 50),
    # NVIDIA B200 (HGX) data sheet: 2,250 TFLOP/s dense, 180 GB, NVLink 1.8 TB/s both ways
    Gpu("b200", 2250, 75, 180, 7700, 900, 50),
    # NVIDIA A100 data sheet: NVLink 600 GB/s both ways; DGX A100: 200 Gbit/s each
    Gpu("a100-80", 312, 19.5, 80, 2039, 300, 25),
    Gpu("a100-40", 312, 19.5, 40, 1555, 300, 25),
    # A800: A100 with NVLink of 400 GB/s both ways
    Gpu("a800", 312, 19.5, 80, 2039, 200, 25),
    # NVIDIA L40S data sheet: 362 TFLOP/s bf16 dense, PCIe 4.0 x16 (32 GB/s one way); network: 200 Gbit/s for two
    Gpu("l40s", 362, 91.6, 48, 864, 32, 12.5),
    # NVIDIA Ada whitepaper: 165.2 TFLOP/s bf16 with float32 sums, PCIe 4.0 x16; network: 100 Gbit/s for eight
    Gpu("rtx4090", 165.2, 82.6, 24, 1008, 32, 1.6),
    # Huawei Atlas 800T A2: 313 TFLOP/s in half precision (of the 910B3), HCCS 392 GB/s both ways over seven links,
    # 200 Gbit/s RoCE each; float32 as reported
    Gpu("ascend-910b", 313, 75, 64, 1600, 196, 25),
    # The two cores of docs/numbers.md: a matrix product's rate in float32; no units for bf16. Memory is the host's.
    Gpu("cpu", 0.001, 0.17, 16, 20, 5, 1.25, per_node=1),
)
GPUS = {gpu.name: gpu for gpu in _ALL}


def gpu_named(name: str) -> Gpu:
    """ConfigError for an accelerator without stated rates."""
    if name not in GPUS:
        raise ConfigError(
            f"command line: key 'gpu': found {name!r}; allowed: {', '.join(GPUS)}; take the nearest, or add its data "
            "sheet to opensora/planning/rates.py"
        )
    return GPUS[name]
