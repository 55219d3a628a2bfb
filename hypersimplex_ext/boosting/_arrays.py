"""Margins, labels and weights as boosting libraries hand them over, checked, on their own memory where possible.

Margins are [n] (binary) or [n, C], in C order or, as LightGBM keeps them, class after class.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
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


def labels(value: Any, x: Tensor, to_train: bool = False) -> Tensor:
    """Of binary margins 0 and 1 in their dtype, of [n, C] class indices in int64: [n].

    One class alone teaches nothing, and is refused `to_train`; an evaluation set may hold no other.
    """
    array = _array("labels", value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"labels must be numbers 0, 1, ..., got {array.dtype}")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.shape != x.shape[:1]:
        raise ValueError(f"labels must have shape [{len(x)}], one per sample, got {list(array.shape)}")
    classes = x.shape[1] if x.ndim > 1 else 2
    dtype = x.numpy().dtype if x.ndim == 1 else np.dtype(np.int64)
    target = None if array.dtype == dtype else memory(array, dtype)
    least, greatest = classes, 0
    for rows in blocks(array):
        index = array[rows].astype(bool) if x.ndim == 1 else _truncated(array[rows])
        least, greatest = min(least, int(index.min())), max(greatest, int(index.max()))
        if least < 0 or greatest >= classes or not np.array_equal(array[rows], index):
            raise ValueError(f"labels must be integers from 0 to {classes - 1}, got {_first_wrong(array, classes)}")
        if target is not None:
            target[rows] = index
    if to_train and least == greatest:
        raise ValueError(f"labels must be of at least two classes, got {least} alone")
    return _shared(array if target is None else target)


_BLOCK = 1 << 16  # entries: what is made of as many stays in the cache, on pages that are not fresh


def blocks(array: Array) -> Iterator[slice]:
    """The rows of an array, as many at a time as leave temporary arrays small."""
    rows = max(_BLOCK // max(math.prod(array.shape[1:]), 1), 1)
    return (slice(start, start + rows) for start in range(0, len(array), rows))


_LARGE_PAGE = 1 << 21
_LARGE = 2 * _LARGE_PAGE  # from here on NumPy asks for large pages


def memory(like: Array, dtype: Any = None) -> Array:
    """As `numpy.empty_like`. A large array fills whole large pages, of which fresh ones cost least."""
    dtype = like.dtype if dtype is None else dtype
    size = like.size * dtype.itemsize
    if size < _LARGE:
        return np.empty_like(like, dtype)
    block = np.empty((size // _LARGE_PAGE + 2) * _LARGE_PAGE, np.uint8)
    order: Any = "F" if like.strides[0] < like.strides[-1] else "C"
    placed: Array = np.ndarray(like.shape, dtype, block, -block.ctypes.data % _LARGE_PAGE, order=order)
    return placed


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
    strided = any(stride < 0 or stride % array.itemsize for stride in array.strides)
    if strided or not array.flags.writeable or not array.dtype.isnative:
        array = np.array(array, dtype=array.dtype.newbyteorder("="))
    return torch.from_numpy(array)


def _first_wrong(array: Array, classes: int) -> Any:
    wrong = ~((array >= 0) & (array < classes) & (array == np.floor(array)))
    return array[wrong][0]
