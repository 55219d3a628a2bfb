"""The enumerations of csrc/hypersimplex.h, as the core has them, or as they are written here where it is not built."""

from __future__ import annotations

try:
    from . import _C
except ImportError:  # _backends.py says why when it is missed
    _C = None  # type: ignore[assignment]

WRITTEN_OUT = {
    "DType": {"FLOAT32": 0, "FLOAT64": 1, "FLOAT16": 2, "BFLOAT16": 3},
    "LossKind": {"SQUARED": 0, "FENCHEL_YOUNG": 1},
    "Reduction": {"MEAN": 0, "SUM": 1},
    "MassKind": {"VALUE": 0, "TARGETS": 1, "FRACTION": 2},
    "Divergence": {"L2": 0, "KL": 1},
    "IsotonicResult": {"REGRESSION": 0, "PRIMAL": 1, "EXP_PRIMAL": 2},
    "BlockProduct": {"MEAN": 0, "RATIO": 1, "TRANSPOSED": 2, "RESIDUAL": 3},
    "LossState": {"ROWS": 6},
    "TargetKind": {"CLASS_INDEX": 0, "DENSE": 1, "NONE": 2},
    "ShardStage": {"MOMENTS": 0, "COUNTS": 1, "EDGES": 2, "LOSS": 3},
}
_values = WRITTEN_OUT if _C is None else _C.enumerations()


def codes(enumeration: str, *names: str) -> tuple[int, ...]:
    """The numbers that these names stand for."""
    return tuple(_values[enumeration][name] for name in names)
