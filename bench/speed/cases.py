"""What is measured: one table of cases in two sizes, and the inputs they are made of."""

from __future__ import annotations

import dataclasses
import functools
import zlib

import torch
from torch import Tensor

from bench.distributions import DISTRIBUTIONS

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

# What a loss may do otherwise than by default: k = "targets", squared, class indices, logits in C order.
HALF_MASS, FENCHEL_YOUNG, DENSE, FORTRAN = VARIANTS = ("k = 0.5", "Fenchel-Young", "dense targets", "Fortran order")

# By the names that results hold.
INPUTS = {distribution.label: distribution for distribution in DISTRIBUTIONS.values() if distribution.label}


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement: an operation on `vectors` vectors of n entries; equal cases are the same measurement.

    Attributes:
        group: the comparison it belongs to, which decides who takes part, see `bench.speed.peers.GROUPS`.
        vectors: rows of a projection, classes of a loss.
        n: entries of a vector; samples of a loss.
        k: mass of each vector of a projection; 0 for everything else.
        operation: a key of `bench.speed.peers.FIELDS`.
        layout: "rows": a contiguous [vectors, n]; "columns": a contiguous [n, vectors], as the logits of a loss are.
        dtype: a key of `DTYPES`.
        inputs: a key of `INPUTS`.
        threads: CPU threads of torch; 0 leaves torch's own choice, one per core unless told otherwise.
        device: "cpu" or "cuda".
        variant: what a loss does otherwise, one of `VARIANTS`; it draws the same numbers.
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
    device: str = "cpu"
    variant: str = dataclasses.field(default="", repr=False)

    @functools.cached_property
    def dim(self) -> int:
        """The dimension of the tensor that a vector extends along."""
        return 1 if self.layout == "rows" else 0

    @functools.cached_property
    def tau(self) -> float:
        """Temperature in the units of the inputs."""
        return INPUTS[self.inputs].tau

    @property
    def bytes(self) -> int:
        """Size of the input."""
        return self.vectors * self.n * DTYPES[self.dtype].itemsize

    @property
    def label(self) -> str:
        """What readers see."""
        if self.operation == "loss":
            parts = [f"loss [{self.n}, {self.vectors}]"]
        elif self.operation != "projection":
            parts = [f"{self.operation}, {self.vectors} x {short(self.n)}"]
            parts += [self.inputs] if self.inputs != "normal" else []
        else:
            parts = [f"{self.vectors} x {short(self.n)}, k = {short(self.k)}"]
        parts += [self.dtype] if self.dtype != "float32" else []
        parts += [self.variant] if self.variant else []
        parts += ["columns"] if self.layout == "columns" and self.operation != "loss" else []
        return ", ".join(parts)

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the input, the gradient that arrives at a projection's output, and the classes of a loss's samples.

        A loss of one class has labels 0 and 1. The same case draws the same numbers, on every device.
        """
        torch.manual_seed(zlib.crc32(repr(dataclasses.replace(self, device="cpu")).encode()))
        draw = INPUTS[self.inputs].draw
        if draw is torch.randn:
            x = draw(self.vectors * self.n).view(self.vectors, self.n)
        else:
            x = torch.stack([draw(self.n) for _ in range(self.vectors)])
        x = x.to(DTYPES[self.dtype])
        if self.layout == "columns":
            x = x.T if self.variant == FORTRAN else x.T.contiguous()
        classes = torch.randint(max(self.vectors, 2), (self.n if self.operation == "loss" else 0,))
        v = torch.randn(x.shape).to(x.dtype)
        return x.to(self.device), v.to(self.device), classes.to(self.device)


def short(number: int) -> str:
    """Return 1e6 for 1000000, and small numbers as they are."""
    digits = str(number)
    rest = digits.rstrip("0")
    return f"{rest}e{len(digits) - 1}" if number >= 10_000 and len(rest) == 1 else digits


def _loss(samples: int, classes: int) -> Case:
    return Case("loss", classes, samples, 0, "loss", "columns")


def _peers(vectors: int, n: int, k: int) -> Case:
    return Case("peers", vectors, n, k)


def _order(*shapes: tuple[int, int], device: str = "cpu") -> list[Case]:
    """Everything that rests on isotonic regression."""
    soft = [f"{name}, {regularization}" for name in ("soft rank", "soft sort") for regularization in ("l2", "kl")]
    operations = ("sort", "regression", *soft)
    return [Case("order", *shape, 0, operation, device=device) for shape in shapes for operation in operations]


def _regressions(vectors: int, n: int, *dtypes: str) -> list[Case]:
    return [
        Case("order", vectors, n, 0, "regression", dtype=dtype, inputs=inputs)
        for dtype in dtypes
        for inputs in ("normal", "sorted", "reversed", "sawtooth")
    ]


def _lengths(total: int, lengths: tuple[int, ...]) -> list[Case]:
    return [Case("length", max(total // n, 1), n, n // 2) for n in lengths]


def _variants(vectors: int, n: int) -> list[Case]:
    """One shape in every other respect: mass, dtype, layout, threads."""
    return [
        *(Case("mass", vectors, n, k) for k in dict.fromkeys((1, 5, n // 10, n // 2))),
        *(Case("dtype", vectors, n, n // 2, dtype=dtype) for dtype in ("float32", "float64", "bfloat16")),
        *(Case("layout", vectors, n, n // 2, layout=layout) for layout in ("rows", "columns")),
        *(Case("threads", vectors, n, n // 2, threads=threads) for threads in (1, 2)),
    ]


def _grid(samples: int, classes: int, variant: str = "", dtype: str = "float32") -> Case:
    return Case("loss-grid", classes, samples, 0, "loss", "columns", dtype, variant=variant)


def _columns(n: int, columns: int) -> Case:
    return Case("columns", columns, n, n // 2, layout="columns")


def _busy(vectors: int, n: int, operation: str = "projection", layout: str = "rows") -> Case:
    return Case("busy", vectors, n, n // 2 if operation == "projection" else 0, operation, layout)


def _gpu(vectors: int, n: int, k: int) -> list[Case]:
    return [Case("gpu-rows", vectors, n, k, dtype=dtype, device="cuda") for dtype in _GPU_DTYPES]


def _gpu_loss(samples: int, classes: int) -> list[Case]:
    return [Case("gpu-loss", classes, samples, 0, "loss", "columns", dtype, device="cuda") for dtype in _GPU_DTYPES]


_GPU_DTYPES = ("float32", "bfloat16")
_MOST = 42_000_000  # entries of a grid's largest tensors
_GRID = [
    _grid(n, classes)
    for classes in (1, 2, 5, 10, 15, 16, 20, 30, 50, 100, 200, 500, 1000, 5000)
    for n in (128, 1024, 8192, 65_536)
    if n * classes <= _MOST
]
_GRID_VARIANTS = [
    _grid(n, classes, variant)
    for variant in VARIANTS
    for n, shown in ((128, (10,)), (1024, (10, 100, 1000)), (8192, (2, 10, 20, 50, 100, 500)), (65_536, (10, 30)))
    for classes in shown
]
_GRID_HALVES = [
    _grid(n, classes, dtype=dtype)
    for dtype in ("bfloat16", "float16")
    for n, classes in ((1024, 10), (1024, 100), (8192, 10), (8192, 100), (65_536, 10), (65_536, 30))
]
_QUICK_GRID = [
    *(
        _grid(n, classes)
        for n, classes in ((128, 10), (1024, 10), (1024, 100), (2048, 1000), (65_536, 2), (65_536, 30))
    ),
    *(_grid(8192, classes) for classes in (1, 10, 20, 50, 100, 500)),
    *(_grid(8192, 100, variant) for variant in VARIANTS),
]
_WIDTHS = (2, 10, 16, 20, 50, 100, 500, 5000)
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
    *_order((3, 40)),
    *_regressions(1, 50, "float32"),
    _grid(40, 3),
    _grid(40, 3, DENSE),
    _columns(40, 3),
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
    *_order((256, 1000)),
    *_QUICK_GRID,
    *(_columns(8192, columns) for columns in _WIDTHS),
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
    *(Case("long", 100_000_000 // n, n, n // 2) for n in (1000, 10_000, 100_000, 1_000_000, 10_000_000)),
    *(Case("long", 1, 100_000_000, k) for k in (5, 50_000_000)),
    Case("memory", 4096, 4096, 5),
    Case("memory", 1, 1 << 24, 1 << 23),
    *_order((4096, 1000), (10, 8192)),
    *_regressions(1, 1_000_000, "float32", "float64"),
    *(Case("order", 1, n, 0, "regression") for n in (1000, 10_000, 100_000, 10_000_000)),
    *_GRID,
    *_GRID_VARIANTS,
    *_GRID_HALVES,
    *(_columns(n, columns) for n in (1024, 8192, 65_536) for columns in _WIDTHS if n * columns <= _MOST),
]
BUSY = [
    *(_busy(classes, samples, "loss", "columns") for samples, classes in ((65_536, 100), (8192, 100), (8192, 10))),
    _busy(64, 8192),
    _busy(64, 8192, layout="columns"),
    _busy(1, 1_000_000),
    _busy(256, 1000, "sort"),
    _busy(256, 1000, "regression"),
]
BUSY_SMOKE = [_busy(3, 40, "loss", "columns"), _busy(3, 40), _busy(3, 40, layout="columns"), _busy(3, 40, "sort")]
GPU = [
    *_gpu(16_384, 1024, 5),
    *_gpu(16_384, 1024, 512),
    *_gpu(65_536, 128, 64),
    *_gpu(4096, 8192, 4096),
    *_gpu(64, 1 << 18, 1 << 17),
    *_gpu(1, 100_000_000, 50_000_000),
    *_gpu(1, 100_000_000, 5),
    *_gpu(10, 8192, 4096),
    *_gpu_loss(8192, 10),
    *_gpu_loss(65_536, 10),
    *_gpu_loss(65_536, 1000),
    *_gpu_loss(8192, 32_000),
    *_order((4096, 1000), (10, 8192), (64, 1 << 18), device="cuda"),
]
# The same in order of value: seven that show the targets and the regimes, the other projections and losses, the rest.
_LEADING = [
    *(_gpu(*shape)[0] for shape in ((16_384, 1024, 5), (4096, 8192, 4096), (10, 8192, 4096))),
    *(_gpu_loss(*shape)[0] for shape in ((65_536, 1000), (8192, 10))),
    *(_gpu(*shape)[0] for shape in ((1, 100_000_000, 50_000_000), (64, 1 << 18, 1 << 17))),
]
GPU_BY_VALUE = list(
    dict.fromkeys([*_LEADING, *sorted(GPU, key=lambda case: (case.group == "order", case.dtype != "float32"))])
)
GPU_SMOKE = [*_gpu(64, 100, 5), *_gpu_loss(200, 10), *_order((8, 100), device="cuda")]
