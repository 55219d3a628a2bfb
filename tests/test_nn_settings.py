"""Settings of the modules: what they may be, how they are shown, when they are checked."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from hypersimplex_ext.nn import HyperSimplexLoss, SoftBinaryArgmax

from .test_nn import batch


def test_numbers_of_other_libraries_become_pythons(device):
    x, labels = batch(device)
    module = HyperSimplexLoss(
        np.int64(4),
        np.int32(5),
        np.float32(0.5),
        ignore_index=np.int64(-1),
        label_smoothing=Fraction(1, 4),
        momentum=np.float64(0.5),
    ).to(device)
    due = {"k": 5, "tau": 0.5, "ignore_index": -1, "label_smoothing": 0.25, "momentum": 0.5}
    for name, value in due.items():
        assert getattr(module, name) == value
        assert type(getattr(module, name)) is type(value)
    layer = SoftBinaryArgmax(np.float64(2), np.float32(0.5), np.int64(1))
    assert [type(setting) for setting in (layer.k, layer.tau, layer.dim)] == [float, float, int]
    for compiled in (torch.compile(f, fullgraph=True, backend="eager") for f in (module, layer)):
        arguments = (x, labels) if "Loss" in repr(compiled) else (x,)
        assert compiled(*arguments).isfinite().all()


def test_repr_shows_what_is_not_the_default():
    assert repr(SoftBinaryArgmax(1)) == "SoftBinaryArgmax(k=1)"
    assert repr(SoftBinaryArgmax(2, 0.5, 0, solver="pav")) == "SoftBinaryArgmax(k=2, tau=0.5, dim=0, solver='pav')"
    module = HyperSimplexLoss(
        2,
        0.5,
        torch.ones(2),
        kind="fenchel_young",
        weight=torch.ones(2),
        ignore_index=0,
        label_smoothing=0.1,
        reduction="sum",
        momentum=None,
    )
    assert repr(module) == (
        "HyperSimplexLoss(num_classes=2, k=0.5, tau=Tensor[2], kind='fenchel_young', weight=Tensor[2], ignore_index=0, "
        "label_smoothing=0.1, reduction='sum', momentum=None)"
    )


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"k": "target"}, ValueError, "k must be one of 'targets', got 'target'"),
        ({"k": True}, TypeError, "k must be a real number, a Tensor or 'targets', got bool"),
        ({"k": 1.5}, ValueError, r"k must lie in \[0, 1\], got 1.5"),
        ({"k": -1}, ValueError, "k must be at least 0, got -1"),
        ({"k": torch.ones(4)}, ValueError, r"k must broadcast to \[5\], the number of classes, got shape \[4\]"),
        ({"tau": torch.ones(5, 1)}, ValueError, r"tau must broadcast to \[5\], the number of classes"),
        ({"tau": torch.ones(5, dtype=torch.bool)}, TypeError, "tau must be real, got torch.bool"),
        ({"weight": torch.ones(4)}, ValueError, r"weight must have shape \[5\], got \[4\]"),
        ({"weight": [1.0] * 5}, TypeError, "weight must be a Tensor, got list"),
    ],
)
def test_settings_are_checked_as_soon_as_the_number_of_classes_is_known(settings, error, message):
    with pytest.raises(error, match=message):
        HyperSimplexLoss(5, **settings)
    with pytest.raises(error, match=message):
        HyperSimplexLoss(**settings)(*batch("cpu", classes=5))


def test_a_temperature_that_came_later_is_checked():
    module = HyperSimplexLoss(5)
    module.tau = torch.ones(4)
    with pytest.raises(ValueError, match=r"tau must broadcast to \[5\], the number of classes, got shape \[4\]"):
        module.predict(torch.randn(3, 5))


@pytest.mark.parametrize("dim", [None, 1.0, True])
def test_dim_of_the_layer_is_an_integer(dim):
    with pytest.raises(TypeError, match="dim must be an integer"):
        SoftBinaryArgmax(1, dim=dim)
