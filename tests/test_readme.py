"""The snippets of the README run, and do what it says."""

import re
from pathlib import Path

import pytest
import torch

from hypersimplex_ext import soft_binary_argmax

SNIPPETS = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.DOTALL)


def snippet(containing):
    (code,) = (code for code in SNIPPETS if containing in code)
    return code


@pytest.mark.parametrize("k", [1, 7, 50])
@pytest.mark.parametrize("tau", [0.05, 1.0, 20.0])
def test_equivalent_in_plain_torch(k, tau):
    namespace = {}
    exec(snippet("def plain_soft_binary_argmax"), namespace)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 101, generator=generator, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(20, 101, generator=generator, dtype=torch.float64)
    ours = soft_binary_argmax(x, k, tau)
    plain = namespace["plain_soft_binary_argmax"](x, k, tau)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(y, x, upstream)[0] for y in (ours, plain)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)


def test_training_example_learns():
    torch.manual_seed(0)
    centres = torch.randn(10, 64)
    labels = torch.randint(10, (40, 128))
    batches = [(centres[y] + 0.3 * torch.randn(128, 64), y) for y in labels]
    namespace = {"batches": batches}
    exec(snippet("for x, y in batches"), namespace)
    accuracy = (namespace["labels"] == batches[-1][1]).double().mean()
    assert accuracy > 0.95
    layer = namespace["model"][-1]
    namespace["loss"].fold_into(layer)
    folded = namespace["model"](batches[-1][0]).argmax(1)
    assert torch.equal(folded, namespace["labels"])
