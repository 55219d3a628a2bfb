"""What is measured: one table of cases in two sizes, and the inputs they are made of."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}

# n -> entries [n], for a temperature of 1 unless TEMPERATURES says otherwise.
INPUTS: dict[str, Callable[[int], Tensor]] = {
    "normal": torch.randn,
    "narrow (sd 0.001)": lambda n: 1e-3 * torch.randn(n),
    "wide (sd 100)": lambda n: 100 * torch.randn(n),
    "uniform": torch.rand,
    "all equal": lambda n: torch.full((n,), 0.3),
    "two values": lambda n: (torch.rand(n) < 0.5).float(),
    "two far values": lambda n: 50 * (torch.rand(n) < 0.5).float(),
    "multiples of 1/4": lambda n: torch.randn(n).mul(4).round().div(4),
    "Cauchy": lambda n: torch.empty(n).cauchy_(),
    "log-normal (sigma 3)": lambda n: torch.empty(n).log_normal_(0, 3),
    "geometric": lambda n: torch.logspace(-20, 20, n),
    "1e30 normal": lambda n: 1e30 * torch.randn(n),
    "outlier 1e8": lambda n: torch.cat([torch.tensor([1e8]), torch.randn(n)])[:n],
    "outlier -1e8": lambda n: torch.cat([torch.tensor([-1e8]), torch.randn(n)])[:n],
    "offset 1e6": lambda n: 1e6 + torch.randn(n),
    "half at -1e9": lambda n: torch.where(torch.rand(n) < 0.5, -1e9, torch.randn(n)),
    "half at -inf": lambda n: torch.where(torch.rand(n) < 0.5, -torch.inf, torch.randn(n)),
    "two scales": lambda n: torch.cat([torch.randn(n - n // 2) * 1e-3, torch.randn(n // 2) * 1e3]),
    "two clusters": lambda n: torch.cat([torch.randn(n - n // 2) * 1e-6, 1 + torch.randn(n // 2) * 1e-6]),
    "sorted": lambda n: torch.randn(n).sort().values,
    "reversed": lambda n: torch.randn(n).sort(descending=True).values,
    "tau 1e-6": torch.randn,
    "tau 1e4": torch.randn,
}
TEMPERATURES = {"tau 1e-6": 1e-6, "tau 1e4": 1e4}


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement: an operation on `vectors` vectors of n entries; equal cases are the same measurement.

    Attributes:
        group: the comparison it belongs to, which decides who takes part, see `bench.peers.GROUPS`.
        vectors: rows of a projection, classes of a loss.
        n: entries of a vector; samples of a loss.
        k: mass of each vector; 0 for a loss, which counts its targets.
        operation: "projection" or "loss".
        layout: "rows": a contiguous [vectors, n]; "columns": a contiguous [n, vectors], as the logits of a loss are.
        dtype: a key of `DTYPES`.
        inputs: a key of `INPUTS`.
        threads: CPU threads of torch; 0 leaves torch's own choice, one per core unless told otherwise.
    """

    group: str
    vectors: int
    n: int
    k: int
    operation: str = "projection"
    layout: str = "rows"
    dtype: str = "float32"
    inputs: str = "normal"
    threads: int = 0

    @property
    def dim(self) -> int:
        """The dimension of the tensor that a vector extends along."""
        return 1 if self.layout == "rows" else 0

    @property
    def tau(self) -> float:
        """Temperature in the units of the inputs."""
        return TEMPERATURES.get(self.inputs, 1.0)

    @property
    def bytes(self) -> int:
        """Size of the input."""
        return self.vectors * self.n * DTYPES[self.dtype].itemsize

    @property
    def label(self) -> str:
        """What readers see."""
        if self.operation == "loss":
            return f"loss [{self.n}, {self.vectors}]"
        parts = [f"{self.vectors} x {short(self.n)}, k = {short(self.k)}"]
        parts += [self.dtype] if self.dtype != "float32" else []
        parts += ["columns"] if self.layout == "columns" else []
        return ", ".join(parts)

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the input, the gradient that arrives at a projection's output, and the classes of a loss's samples.

        The same case draws the same numbers.
        """
        torch.manual_seed(zlib.crc32(repr(self).encode()))
        draw = INPUTS[self.inputs]
        if self.inputs in {"normal", "tau 1e-6", "tau 1e4"}:
            x = draw(self.vectors * self.n).view(self.vectors, self.n)
        else:
            x = torch.stack([draw(self.n) for _ in range(self.vectors)])
        x = x.to(DTYPES[self.dtype])
        if self.layout == "columns":
            x = x.T.contiguous()
        classes = torch.randint(self.vectors, (self.n if self.operation == "loss" else 0,))
        return x, torch.randn(x.shape).to(x.dtype), classes


def short(number: int) -> str:
    """Return 1e6 for 1000000, and small numbers as they are."""
    digits = str(number)
    rest = digits.rstrip("0")
    return f"{rest}e{len(digits) - 1}" if number >= 10_000 and len(rest) == 1 else digits


def _loss(samples: int, classes: int) -> Case:
    return Case("loss", classes, samples, 0, "loss", "columns")


def _peers(vectors: int, n: int, k: int) -> Case:
    return Case("peers", vectors, n, k)


def _lengths(total: int, lengths: tuple[int, ...]) -> list[Case]:
    return [Case("length", max(total // n, 1), n, n // 2) for n in lengths]


def _variants(vectors: int, n: int) -> list[Case]:
    """One shape in every other respect: mass, dtype, layout, threads."""
    return [
        *(Case("mass", vectors, n, k) for k in dict.fromkeys((1, 5, n // 10, n // 2))),
        *(Case("dtype", vectors, n, n // 2, dtype=dtype) for dtype in DTYPES),
        *(Case("layout", vectors, n, n // 2, layout=layout) for layout in ("rows", "columns")),
        *(Case("threads", vectors, n, n // 2, threads=threads) for threads in (1, 2)),
    ]


_QUICK_INPUTS = ("normal", "two values", "Cauchy", "half at -inf", "tau 1e-6")
_TINY = [
    *(Case("overhead", vectors, n, 5) for vectors, n in ((1, 16), (10, 16), (10, 128))),
    *(Case("loss-overhead", 10, 128, 0, "loss", "columns", threads=threads) for threads in (1, 2)),
]

SMOKE = [
    _peers(3, 33, 5),
    _loss(40, 3),
    *_lengths(512, (16, 128)),
    Case("inputs", 2, 64, 20, inputs="two values"),
    *_variants(5, 40),
    Case("overhead", 1, 16, 5),
    Case("loss-overhead", 3, 40, 0, "loss", "columns", threads=1),
    Case("memory", 16, 256, 5),
]
QUICK = [
    _peers(10, 8192, 4096),
    _peers(1024, 1000, 5),
    _loss(8192, 10),
    _loss(2048, 1000),
    *_lengths(1 << 20, (16, 128, 1024, 8192, 65_536, 1 << 20)),
    *(Case("inputs", 16, 8192, 4096, inputs=inputs) for inputs in _QUICK_INPUTS),
    *_variants(64, 8192),
    *_TINY,
    Case("long", 1, 1_000_000, 5),
    Case("long", 1, 1_000_000, 500_000),
    Case("memory", 1024, 4096, 5),
]
FULL = [
    _peers(10, 8192, 4096),
    _peers(4096, 1000, 5),
    _peers(4096, 1000, 1),
    _peers(65_536, 10, 5),
    _peers(16_384, 128, 5),
    _peers(10, 16, 5),
    _peers(1, 1_000_000, 500_000),
    _loss(8192, 10),
    _loss(65_536, 10),
    _loss(4096, 1000),
    _loss(65_536, 1000),
    *_lengths(1 << 24, (16, 64, 256, 1024, 4096, 16_384, 65_536, 1 << 18, 1 << 20, 1 << 22, 1 << 24)),
    *(Case("inputs", 16, 8192, 4096, inputs=inputs) for inputs in INPUTS),
    *(Case("inputs", 1, 1_000_000, 500_000, inputs=inputs) for inputs in INPUTS),
    *_variants(10, 8192),
    *_variants(4096, 1000),
    *_variants(8192, 10),
    *_variants(1, 1_000_000),
    *_TINY,
    *(Case("long", 1, n, k) for n in (1_000_000, 10_000_000) for k in (1, 5, n // 10, n // 2)),
    *(Case("long", 1, 100_000_000, k) for k in (5, 50_000_000)),
    Case("memory", 4096, 4096, 5),
    Case("memory", 1, 1 << 24, 1 << 23),
]
