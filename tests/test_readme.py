"""The snippets of the README run, and do what it says."""

import functools
import re
from pathlib import Path

import pytest
import torch

from hypersimplex_ext import hypersimplex_loss, soft_binary_argmax

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


def test_boosting_example_learns():
    for library in ("lightgbm", "xgboost"):
        pytest.importorskip(library, reason=f"{library} is not installed")
    features = torch.randn(800, 5).numpy()
    labels = (features[:, 0] > features[:, 1]).astype(str)
    namespace = {"features": features[:400], "labels": labels[:400], "new_features": features[400:]}
    exec(snippet("boosting"), namespace)
    assert (namespace["predictions"] == labels[400:]).mean() > 0.85
    assert ((namespace["ranking"] > 0) == (namespace["predictions"] == "True")).all()


def test_ranking_example_learns():
    namespace = {}
    exec(snippet("def spearman"), namespace)
    prediction, target = torch.randn(4, 20).requires_grad_(), torch.randn(4, 20)
    optimizer = torch.optim.Adam([prediction], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        value = namespace["spearman"](prediction, target)
        value.backward()
        optimizer.step()
    assert value < 0.1 < namespace["spearman"](torch.randn(4, 20), target)


# ---- using it with torch.compile, AMP, DDP, torch.func ----


@pytest.fixture
def batch():
    return {"x": torch.randn(32, 64), "y": torch.arange(32) % 10, "logits": torch.randn(32, 10)}


def assert_trained(model, loss):
    assert model.weight.grad.any()
    assert loss.num_batches_tracked.tolist() == [1] * 10


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch about itself
def test_compile(batch, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))  # in less time
    exec(snippet("compiled_step"), batch)
    assert_trained(batch["model"], batch["loss"])


def test_mixed_precision(batch):
    exec(snippet("GradScaler"), batch)
    assert_trained(batch["model"], batch["loss"])
    assert batch["value"].dtype == torch.float32


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_distributed(batch, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        exec(snippet("DistributedDataParallel"), batch)
        assert_trained(batch["model"].module, batch["loss"])
    finally:
        torch.distributed.destroy_process_group()


def test_function_transforms(batch):
    exec(snippet("torch.func"), batch)
    for tau, gradient in zip(batch["temperatures"].tolist(), batch["gradients"], strict=True):
        leaf = batch["logits"].clone().requires_grad_()
        (expected,) = torch.autograd.grad(hypersimplex_loss(leaf, batch["y"], tau=tau), leaf)
        torch.testing.assert_close(gradient, expected)
    assert batch["curvature"].any()


def test_every_snippet_is_run():
    tested = Path(__file__).read_text()
    run = {snippet(word) for word in re.findall(r"exec\(snippet\(\"(.*?)\"\)", tested)}
    assert run == set(SNIPPETS)
