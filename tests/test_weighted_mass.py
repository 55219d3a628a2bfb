"""A weighted mass: the loss of a batch in which a sample stands as often as its weight says."""

import pytest
import torch

from hypersimplex_ext import _weighted, hypersimplex_loss, reference
from hypersimplex_ext.nn import HyperSimplexLoss

from .cases import assert_close
from .test_nn import batch

KINDS = pytest.mark.parametrize("kind", ["squared", "fenchel_young"])


def draw(device, targets, n=23, classes=3):
    """Logits, targets, and small whole weights, some of them 0."""
    x = 2 * torch.randn(n, classes, device=device, dtype=torch.float64)
    labels, s = torch.randint(classes, (n,), device=device), torch.randint(4, (n,), device=device)
    if targets == "ignored":
        labels[::4] = -100
    if targets == "dense":
        labels = torch.rand_like(x)
        labels[::4, 1] = -100
    if targets == "binary":
        x, labels = x[:, 0], (labels == 0).double()
    return x, labels, s


@KINDS
@pytest.mark.parametrize("targets", ["indices", "ignored", "dense", "binary"])
@pytest.mark.parametrize("k", ["targets", 0.37, 2])
@pytest.mark.parametrize("tau", [0.3, 1.0, 5.0])
def test_weights_are_numbers_of_copies(device, kind, targets, k, tau):
    for _ in range(5):
        x, target, s = draw(device, targets)
        x.requires_grad_()
        settings = {"kind": kind, "label_smoothing": 0.1}
        value = hypersimplex_loss(x, target, k, tau, sample_weight=s.double(), weighted_mass=True, **settings)
        copies = torch.arange(len(x), device=device).repeat_interleave(s)
        due = hypersimplex_loss(x[copies], target[copies], k, tau, **settings)
        assert_close(value.detach(), due.detach(), 1e-12)
        gradients = [torch.autograd.grad(v, x)[0] for v in (value, due)]
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@KINDS
def test_reductions_and_class_weights(device, kind):
    x, labels, s = draw(device, "ignored")
    w = torch.rand(3, device=device, dtype=torch.float64)
    settings = {"kind": kind, "weight": w, "sample_weight": s.double(), "weighted_mass": True}
    terms, total, mean = (hypersimplex_loss(x, labels, reduction=r, **settings) for r in ("none", "sum", "mean"))
    assert terms.shape == x.shape
    assert_close(terms.sum(), total, 1e-12)
    assert_close(total / (w.sum() * s[labels >= 0].sum()), mean, 1e-12)
    assert not terms[labels < 0].any()
    single = hypersimplex_loss(x[0], labels[1], reduction="none", sample_weight=w[:1], weighted_mass=True)
    assert single.shape == (3,)


@KINDS
def test_without_weights_it_is_the_loss(device, kind):
    x, labels, _ = draw(device, "indices")
    assert torch.equal(
        hypersimplex_loss(x, labels, kind=kind, weighted_mass=True), hypersimplex_loss(x, labels, kind=kind)
    )
    empty = x[:0], labels[:0]
    assert hypersimplex_loss(*empty, sample_weight=x[:0, 0], weighted_mass=True).isnan()


@KINDS
def test_gradients(device, kind):
    x, target, s = draw(device, "dense", n=9)
    target = target.clamp(0.01, 0.99).requires_grad_()
    tau = torch.full((3,), 0.8, dtype=torch.float64, device=device, requires_grad=True)
    s = (s + 0.5 * torch.rand(9, device=device, dtype=torch.float64)).requires_grad_()

    def loss(x, target, tau, s):
        return hypersimplex_loss(x, target, tau=tau, sample_weight=s, kind=kind, weighted_mass=True)

    assert torch.autograd.gradcheck(loss, (x.requires_grad_(), target, tau, s))
    assert torch.autograd.gradgradcheck(lambda x: loss(x, target.detach(), tau.detach(), s.detach()), (x,))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e12])
def test_threshold(scale):
    """Of equal weights it is the reference's; of any weights it holds the mass."""
    x = scale * torch.randn(50, 40, dtype=torch.float64)
    k = torch.randint(51, (40,)).double()
    ones = torch.ones_like(x)
    p, d = reference.threshold(x, k, 1.0, 0)
    due = p + d
    assert_close(_weighted.threshold(x, ones, k, 1.0).nan_to_num(), due.nan_to_num(), 1e-12)
    s = torch.rand_like(x)
    k = s.sum(0) * torch.rand(40, dtype=torch.float64)
    t = _weighted.threshold(x, s, k, 1.0)
    assert_close((s * (x - t).clamp(0, 1)).sum(0), k, max(1e-12, scale * 1e-15))


def test_threshold_of_separated_classes():
    """The middle of the gap, however the sums of the weights are rounded."""
    x = torch.rand(50, 200, dtype=torch.float64)
    upper = torch.rand_like(x) < 0.4
    upper[0], upper[1] = True, False
    x = x + 10 * upper
    s = torch.rand_like(x)
    k = (s * upper).flip(0).sum(0)
    due = (torch.where(upper, x, torch.inf).amin(0) - 1 + torch.where(upper, -torch.inf, x).amax(0)) / 2
    assert_close(_weighted.threshold(x, s, k, 1.0), due, 1e-12)


def test_special_values(device):
    x, labels, s = draw(device, "indices")
    s = s.double()
    value = hypersimplex_loss(x, labels * 0, sample_weight=s, weighted_mass=True)  # one class has all, the others none
    assert value == 0
    poisoned = x.clone()
    poisoned[3, 1] = torch.nan
    terms = hypersimplex_loss(poisoned, labels, sample_weight=s + 1, weighted_mass=True, reduction="none")
    assert terms.isnan().all(0).tolist() == [False, True, False]
    assert not terms[:, ::2].isnan().any()


@KINDS
def test_the_decision_follows_the_costs(device, kind):
    """Positives of weight 5: of a score that is the chance of a positive, more are predicted."""
    torch.manual_seed(0)
    x = torch.rand(4000, device=device)
    target = (torch.rand_like(x) < x).float()
    s = 1 + 4 * target
    plain, weighted = (HyperSimplexLoss(1, kind=kind, weighted_mass=mass).to(device) for mass in (False, True))
    for module in (plain, weighted):
        module(x, target, s)
    assert 0.45 < plain.predict(x).float().mean() < 0.55
    assert weighted.predict(x).float().mean() > 0.7


def test_module(device):
    x, labels = batch(device)
    s = torch.rand(64, device=device)
    module = HyperSimplexLoss(4, weighted_mass=True).to(device)
    assert_close(module(x, labels, s), hypersimplex_loss(x, labels, sample_weight=s, weighted_mass=True), 1e-6)
    assert repr(module) == "HyperSimplexLoss(num_classes=4, weighted_mass=True)"
    calibrated, by_loader = (HyperSimplexLoss(4, weighted_mass=True).to(device) for _ in range(2))
    calibrated.calibrate(x, labels, s)
    assert torch.equal(calibrated.running_threshold, module.running_threshold)
    by_loader.calibrate(lambda x: x, zip(x.split(10), labels.split(10), s.split(10), strict=True))
    assert_close(by_loader.running_threshold, module.running_threshold, 1e-6)
    with pytest.raises(TypeError, match="sample_weight must be among what loader yields"):
        module.calibrate(lambda x: x, [(x, labels)], s)


def test_with_a_memory(device):
    x, labels = batch(device, n=30)
    x, s = x.double(), torch.rand(30, device=device).double()
    module = HyperSimplexLoss(4, memory=20, weighted_mass=True, dtype=torch.float64).to(device)
    module(x[10:], labels[10:], s[10:])
    leaf = x.clone().requires_grad_()
    total = hypersimplex_loss(leaf, labels, sample_weight=s, weighted_mass=True, reduction="sum")
    due = torch.autograd.grad(total, leaf)[0][:10] / (4 * s[:10].sum())
    first = x[:10].clone().requires_grad_()
    assert_close(torch.autograd.grad(module(first, labels[:10], s[:10]), first)[0], due, 1e-12)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch about itself
def test_compiled_and_mapped():
    torch._dynamo.reset()
    x, labels, s = draw("cpu", "indices")

    def loss(x, s):
        return hypersimplex_loss(x, labels, sample_weight=s, weighted_mass=True)

    s = s.double()
    assert_close(torch.compile(loss, fullgraph=True, backend="aot_eager")(x, s), loss(x, s), 1e-12)
    both = torch.stack((x, 2 * x))
    assert_close(torch.func.vmap(loss, (0, None))(both, s), torch.stack([loss(x, s), loss(2 * x, s)]), 1e-12)


def test_fenchel_young_needs_a_mass_that_agrees():
    """Only where k and the loss weigh alike is it blind to a shift of all logits; the squared loss always is."""
    torch.manual_seed(0)
    x, labels, s = draw("cpu", "indices")

    def rises(**settings):
        """How much each class's loss rises with each of two equal shifts."""
        at = [
            hypersimplex_loss(x + shift, labels, tau=2.0, reduction="none", **settings).sum(0)
            for shift in (0.0, 50.0, 100.0)
        ]
        return torch.stack(at).diff(dim=0)

    fenchel_young = {"kind": "fenchel_young"}
    for blind in (fenchel_young, {"sample_weight": s, "weighted_mass": True} | fenchel_young, {"sample_weight": s}):
        assert rises(**blind).abs().max() < 1e-9
    for settings in ({"sample_weight": s}, {"k": 2}):
        first, second = rises(**settings, **fenchel_young)
        assert_close(first, second, 1e-9)
        assert first.abs().min() > 1
