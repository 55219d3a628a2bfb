"""Margins, labels and weights as boosting libraries hand them over, checked, on their own memory where possible.

Margins are [n] (binary) or [n, C], in C order or, as LightGBM keeps them, class after class.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]


def margins(value: Any) -> Tensor:
    """Raw scores [n] or [n, C] in float32 or float64, as a tensor on the same memory."""
    array = _array("margins", value)
    if array.dtype not in (np.float32, np.float64):
        raise TypeError(f"margins must be float32 or float64, got {array.dtype}")
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] == 0):
        raise ValueError(f"margins must have shape [n] or [n, C], got {list(array.shape)}")
    if len(array) == 0:
        raise ValueError("margins must have at least one sample, got none")
    tensor = _shared(array)
    return tensor.squeeze(1) if tensor.ndim == 2 and tensor.shape[1] == 1 else tensor


def labels(value: Any, x: Tensor) -> Tensor:
    """Of binary margins 0 and 1 in their dtype, of [n, C] class indices in int64: [n]."""
    array = _array("labels", value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"labels must be numbers 0, 1, ..., got {array.dtype}")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.shape != x.shape[:1]:
        raise ValueError(f"labels must have shape [{len(x)}], one per sample, got {list(array.shape)}")
    classes = x.shape[1] if x.ndim > 1 else 2
    if x.ndim == 1:
        ones = array.astype(bool)
        right = np.array_equal(array, ones)
        target = _shared(array.astype(x.numpy().dtype, copy=False))
    else:
        index = array.astype(np.int64) if array.dtype.kind != "f" else _truncated(array)
        right = index.min() >= 0 and index.max() < classes and np.array_equal(array, index)
        target = _shared(index)
    if not right:
        raise ValueError(f"labels must be integers from 0 to {classes - 1}, got {_first_wrong(array, classes)}")
    return target


def of_several_classes(target: Tensor) -> Tensor:
    """Checked labels to train with: one class alone teaches nothing, though an evaluation set may hold no other."""
    if target.min() == target.max():
        raise ValueError(f"labels must be of at least two classes, got {target[0].item():g} alone")
    return target


def weights(value: Any, x: Tensor) -> Tensor | None:
    """Numbers from 0 in float64, [n], not all of them 0; None where there are none."""
    if value is None:
        return None
    array = _array("sample_weight", value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"sample_weight must be real, got {array.dtype}")
    if array.size == 0:  # as XGBoost says that there are none
        return None
    if array.shape != x.shape[:1]:
        raise ValueError(f"sample_weight must have shape [{len(x)}], one per sample, got {list(array.shape)}")
    array = np.ascontiguousarray(array, np.float64)
    least, total = array.min(), array.sum()
    if not (least >= 0 and 0 < total < np.inf):
        came = "zeros" if total == 0 else least if not least >= 0 else total
        raise ValueError(f"sample_weight must be finite, at least 0 and not all zero, got {came}")
    return _shared(array)


def _truncated(array: Array) -> Array:
    """Towards 0; what is no number becomes something else, without a warning."""
    with np.errstate(invalid="ignore"):
        return array.astype(np.int64)


def _array(name: str, value: Any) -> Array:
    """What is an array on the host, or a list of numbers; nothing that is spread over workers, or on a device."""
    module = type(value).__module__.partition(".")[0]
    if module in ("dask", "dask_expr"):
        raise NotImplementedError(f"{name} must be all samples' at once, got a collection of Dask's: {WHOLE_BATCH}")
    if isinstance(value, Tensor):
        raise TypeError(f"{name} must be a NumPy array, got a Tensor: use hypersimplex_ext.hypersimplex_loss for those")
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:  # of CuPy, for one, which does not copy by itself
        raise TypeError(f"{name} must be a NumPy array, got {type(value).__name__}: {error}") from error


WHOLE_BATCH = (
    "the loss compares all samples of the training set, so that a worker that sees its own rows would train another one"
)


def _shared(array: Array) -> Tensor:
    """A tensor on the memory of an array, where PyTorch takes it as it is."""
    if not array.flags.writeable or any(stride < 0 for stride in array.strides) or not array.dtype.isnative:
        array = np.array(array, dtype=array.dtype.newbyteorder("="))
    return torch.from_numpy(array)


def _first_wrong(array: Array, classes: int) -> Any:
    wrong = ~((array >= 0) & (array < classes) & (array == np.floor(array)))
    return array[wrong][0]
