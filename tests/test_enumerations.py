"""The numbers that stand for words: those of the core, and those written out for where it is not built."""

import pytest
import torch

import hypersimplex_ext
from hypersimplex_ext import _C, _backends, _enumerations


def test_what_is_written_out_is_what_the_core_has():
    assert _C.enumerations() == _enumerations.WRITTEN_OUT


@pytest.mark.parametrize("dtype", [-1, 4])
def test_an_unknown_dtype_is_an_error(dtype):
    with pytest.raises(ValueError, match=f"dtype must lie in .*, got {dtype}"):
        _backends.BACKENDS["cpu"].kernels.ProjectionCall(dtype, "cpu", 0, torch.Size([3]), 0, 0)


def test_version():
    assert hypersimplex_ext.__version__ == hypersimplex_ext.build_info().version
