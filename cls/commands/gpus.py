"""Known GPUs, with the figures of their datasheets; none was measured by us."""

import difflib
import re
from dataclasses import dataclass

from cls.config import Run

# Left for a model on a card: an A6000's error correction takes 6 %, a desktop and the driver about as much of 8 GB.
USABLE = 0.94


@dataclass(frozen=True)
class Gpu:
    """One type. FLOP/s are dense (no sparsity), as stated in NVIDIA's datasheets and architecture papers."""

    name: str
    slurm: str  # what clusters call it in --gpus-per-node=TYPE:N
    memory_gib: float  # built in
    bf16_tflops: float  # tensor cores, adding in fp32; 0: not native (before Ampere)
    fp32_tflops: float  # convolutions as torch runs them: TF32 tensor cores from Ampere on, else plain fp32
    bandwidth_gb_per_s: float

    @property
    def usable_gib(self) -> float:
        return USABLE * self.memory_gib


GPUS = (
    Gpu("RTX 2070", "rtx2070", 8, 0.0, 7.5, 448),
    Gpu("RTX 3060 Ti", "rtx3060ti", 8, 32.4, 16.2, 448),
    Gpu("RTX 3090", "rtx3090", 24, 71.0, 35.6, 936),
    Gpu("RTX A6000", "a6000", 48, 154.8, 77.4, 768),
    Gpu("A100 40GB", "a100", 40, 312.0, 156.0, 1555),
    Gpu("A100 80GB", "a100", 80, 312.0, 156.0, 1935),  # the PCIe card; SXM has 2039 GB/s
    Gpu("H100 80GB", "h100", 80, 756.0, 378.0, 2000),  # the PCIe card; SXM has a third more
)


def plain(name: str) -> str:
    """A name without case, maker and punctuation: 'NVIDIA RTX-3090' -> '3090'."""
    text = re.sub(r"[^a-z0-9]", "", name.lower())
    return re.sub(r"^(nvidia)?(geforce|tesla|quadro)?(rtx)?", "", text)


def find(name: str) -> Gpu:
    """The GPU of a loosely written name (rtx3090, 3090, A6000, a100-80g); ValueError with the nearest otherwise.

    'a100' is the one with 40 GB: what fits there fits the other too.
    """
    wanted = re.sub(r"(\d)(gb?|gib)$", r"\1", plain(name))
    known = {re.sub(r"gb$", "", plain(gpu.name)): gpu for gpu in reversed(GPUS)}
    known |= {plain(gpu.slurm): gpu for gpu in reversed(GPUS)}
    if wanted in known:
        return known[wanted]
    near = difflib.get_close_matches(wanted, known, 1, cutoff=0.5)
    hint = f"; did you mean {known[near[0]].name!r}?" if near else ""
    raise ValueError(
        f"gpu: unknown GPU {name!r}{hint or '.'} Known are {', '.join(gpu.name for gpu in GPUS)}; for another one "
        "cls plan takes its memory: --memory GB"
    )


def precision_on(run: Run, gpu: Gpu | None) -> str:
    """bf16 or fp32, as the run itself would choose; fp32, which needs more memory, if the GPU is unknown."""
    wanted = run.train.precision
    if wanted == "bf16" and gpu and not gpu.bf16_tflops:
        raise ValueError(f"train.precision is bf16, which {gpu.name} does not compute: use --train.precision fp32")
    return ("bf16" if gpu and gpu.bf16_tflops else "fp32") if wanted == "auto" else wanted
