"""Rates of accelerators from data sheets, for estimates; nothing here was measured by this project.

Each entry names the pages that it was compared with and the maker's sheet that they quote. TFLOP/s are dense, without
sparsity; bandwidths are one way, while sheets add both ways. Network rates marked "assumed" have no sheet: such cards
have no network of their own, and machines differ.
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
    network_gbs: float  # GB/s one way to other machines, of its own network card
    per_node: int = 8

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gb * 1e9)

    def tflops(self, dtype: str) -> float:
        return self.bf16_tflops if dtype == "bf16" else self.fp32_tflops


_ALL = (
    # H100 SXM: half of the sheet's 1,979 TFLOP/s, which are with sparsity; NVLink 900 GB/s both ways
    #   https://www.nvidia.com/en-us/data-center/h100/, unrounded in https://glennklockwood.com/garden/processors/h100
    # DGX H100, one ConnectX-7 of 400 Gbit/s for each: https://www.easymanua.ls/nvidia/dgx-h100/manual?p=19 and
    #   https://docs.nvidia.com/networking/display/ConnectX7VPI/Introduction
    Gpu("h100", 989.4, 66.9, 80, 3350, 450, 50),
    # H200: H100 with more and faster memory. https://aiwiki.ai/wiki/nvidia_h200 and, for links and network,
    #   https://github.com/mlcommons/inference_results_v4.1 closed/NVIDIA/systems/H200-SXM-141GBx8_TRT_MaxQ.json
    Gpu("h200", 989.4, 66.9, 141, 4800, 450, 50),
    # H800: H100 with NVLink of 400 GB/s both ways and little float64; 400 Gbit/s each in DeepSeek's machines
    #   https://aiwiki.ai/wiki/nvidia_h800, https://arxiv.org/abs/2505.09343
    Gpu("h800", 989.4, 66.9, 80, 3350, 200, 50),
    # DGX B200, divided by eight: 1,440 GB at 64 TB/s, NVLink 14.4 TB/s both ways, 400 Gbit/s each
    #   https://www.nvidia.com/en-us/data-center/dgx-b200/, quoted in
    #   https://brent-newsom-nvidia.github.io/AIPS-Boom/wiki/NVIDIA-DGX-B200
    # HGX B200, divided by eight: 36 PFLOP/s bf16 with sparsity, 600 TFLOP/s float32
    #   https://fibermall.com/blog/?p=17161
    Gpu("b200", 2250, 75, 180, 8000, 900, 50),
    # A100 SXM, NVLink 600 GB/s both ways: https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/
    #   nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf, quoted in https://glennklockwood.com/garden/processors/A100
    # DGX A100, eight ConnectX-6 of 200 Gbit/s: https://developer.nvidia.com/blog/defining-ai-innovation-with-dgx-a100
    Gpu("a100-80", 312, 19.5, 80, 2039, 300, 25),
    Gpu("a100-40", 312, 19.5, 40, 1555, 300, 25),
    # A800: A100 with NVLink of 400 GB/s both ways, nothing else changed: https://aiwiki.ai/wiki/nvidia_a800
    Gpu("a800", 312, 19.5, 80, 2039, 200, 25),
    # L40S: 362.05 TFLOP/s bf16, PCIe 4.0 x16 of 64 GB/s both ways: https://www.mullet.se/product.html?product_id=355414
    # Network assumed: 200 Gbit/s for two
    Gpu("l40s", 362.05, 91.6, 48, 864, 32, 12.5),
    # RTX 4090: bf16 with float32 sums; https://waredb.com/processor/nvidia-geforce-rtx-4090. PCIe 4.0 x16 as above
    # Network assumed: 100 Gbit/s for eight
    Gpu("rtx4090", 165.2, 82.6, 24, 1008, 32, 1.6),
    # Ascend 910B3: 313 TFLOP/s in half precision (the 910B4 has 280: https://ai.gitee.com/docs/compute/clusters_gpu/
    #   ascend_gpu), a quarter of it in float32, four stacks of HBM2e, as benchmarks of it quote
    #   https://jdc.huawei.com/jdc/refactor/viewthread?tid=1175654
    # Atlas 800T A2: HCCS 392 GB/s both ways, over seven links: https://arthurchiao.art/blog/gpu-data-sheets/ and Huawei's
    #   guide, https://support.huawei.com/enterprise/zh/doc/EDOC1100317202; a port of 200 Gbit/s each, as papers report
    Gpu("ascend-910b", 313, 78.3, 64, 1600, 196, 25),
    # The two cores of docs/numbers.md: a matrix product's rate in float32; no units for bf16. Memory is the host's.
    Gpu("cpu", 0.001, 0.17, 16, 20, 5, 1.25, per_node=1),
)
GPUS = {gpu.name: gpu for gpu in _ALL}


def gpu_named(name: str) -> Gpu:
    """ConfigError for an accelerator without stated rates."""
    if name not in GPUS:
        raise ConfigError(
            f"command line: key 'gpu': found {name!r}; allowed: {', '.join(GPUS)}; take the nearest, or add it to "
            "opensora/planning/device_specs.py"
        )
    return GPUS[name]
