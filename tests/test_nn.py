"""The modules: running thresholds, prediction, folding, saving and lazy initialisation."""

import copy
import io
import pickle

import pytest
import torch
from torch.nn.parameter import is_lazy

from hypersimplex_ext import hypersimplex_loss, soft_binary_argmax
from hypersimplex_ext.nn import HyperSimplexLoss, SoftBinaryArgmax

from .cases import assert_close


def batch(device, n=64, classes=4, offset=0.0):
    labels = torch.arange(n, device=device) % classes
    return torch.randn(n, classes, device=device) + offset, labels


def thresholds(x, labels, tau=1.0):
    k = torch.nn.functional.one_hot(labels, x.shape[1]).sum(0)
    return soft_binary_argmax(x, k, tau, dim=0, return_threshold=True)[1]


# ---- SoftBinaryArgmax ----


def test_layer(device):
    x, mask = torch.randn(3, 8, 5, device=device), torch.rand(3, 8, 5, device=device) < 0.7
    layer = SoftBinaryArgmax(2, tau=0.5, dim=1)
    assert torch.equal(layer(x), soft_binary_argmax(x, 2, 0.5, dim=1))
    assert torch.equal(layer(x, mask), soft_binary_argmax(x, 2, 0.5, dim=1, mask=mask))
    assert repr(layer) == "SoftBinaryArgmax(k=2, tau=0.5, dim=1)"


def test_layer_learns_its_temperature(device):
    layer = SoftBinaryArgmax(torch.tensor(2.5), torch.nn.Parameter(torch.tensor(0.5))).to(device)
    assert set(layer.state_dict()) == {"k", "tau"}
    assert [name for name, _ in layer.named_parameters()] == ["tau"]
    (layer(torch.randn(3, 8, device=device)) ** 2).sum().backward()
    assert layer.tau.grad != 0
    assert repr(layer) == "SoftBinaryArgmax(k=Tensor[], tau=Tensor[])"


# ---- the running threshold ----


def test_loss_is_the_function(device):
    x, labels = batch(device)
    sample_weight, weight = torch.rand(64, device=device), torch.rand(4, device=device)
    settings = {"kind": "fenchel_young", "label_smoothing": 0.1, "ignore_index": 3, "reduction": "sum"}
    module = HyperSimplexLoss(4, 0.3, 0.7, weight=weight, **settings).to(device)
    expected = hypersimplex_loss(x, labels, 0.3, 0.7, weight=weight, sample_weight=sample_weight, **settings)
    assert torch.equal(module(x, labels, sample_weight), expected)


def test_running_threshold(device):
    module = HyperSimplexLoss(4, momentum=0.25).to(device)
    expected = torch.zeros(4, device=device)
    for number in range(1, 7):
        x, labels = batch(device, offset=number)
        module(x.requires_grad_(), labels).backward()
        rate = max(0.25, 1 / number)  # a plain average at first
        expected = (1 - rate) * expected + rate * thresholds(x.detach(), labels)
        assert_close(module.running_threshold, expected, 1e-6)
    assert module.num_batches_tracked.tolist() == [6] * 4
    before = module.running_threshold.clone()
    module.eval()
    module(*batch(device))
    assert torch.equal(module.running_threshold, before)
    module.reset_running_stats()
    assert not module.running_threshold.any()
    assert not module.num_batches_tracked.any()


def test_plain_average_over_all_batches(device):
    module = HyperSimplexLoss(4, momentum=None).to(device)
    seen = []
    for step in range(5):
        x, labels = batch(device, offset=step)
        module(x, labels)
        seen.append(thresholds(x, labels))
    assert_close(module.running_threshold, torch.stack(seen).mean(0), 1e-6)


def test_absent_classes_keep_their_threshold(device):
    module = HyperSimplexLoss(3, momentum=0.5).to(device)
    x = torch.randn(20, 3, device=device)
    labels = torch.arange(20, device=device) % 2  # class 2 never occurs
    module(x, labels)
    module(x, torch.zeros(20, dtype=torch.long, device=device))  # class 0 has everything, the others nothing
    assert module.num_batches_tracked.tolist() == [1, 1, 0]
    assert_close(module.running_threshold[:2], thresholds(x, labels)[:2], 1e-6)
    assert module.running_threshold[2] == 0
    module(x, torch.arange(20, device=device) % 3)
    assert_close(module.running_threshold[2], thresholds(x, torch.arange(20, device=device) % 3)[2], 1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_every_route_tracks(device, reduction):
    x, labels = batch(device)
    labels[::5] = -100
    module = HyperSimplexLoss(4, reduction=reduction).to(device)
    module(x, labels)
    kept = labels != -100
    assert_close(module.running_threshold, thresholds(x[kept], labels[kept]), 1e-6)
    y = torch.stack([soft_binary_argmax(x[kept, c], int((labels == c).sum())) for c in range(4)], 1)
    assert_close(module.active_fraction, ((y > 0) & (y < 1)).float().mean(), 1e-6)


def test_active_fraction(device):
    module = HyperSimplexLoss(4).to(device)
    assert module.active_fraction is None
    x, labels = batch(device)
    module.eval()(x, labels)
    assert module.active_fraction is None
    module.train()
    for tau, low, high in ((1e-4, 0.0, 0.05), (100.0, 0.95, 1.0)):
        module.tau = tau
        module(x.requires_grad_(), labels).backward()
        assert low <= module.active_fraction.item() <= high
        assert not module.active_fraction.requires_grad
    assert set(module.state_dict()) == {"running_threshold", "num_batches_tracked", "_extra_state"}
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin.active_fraction, module.active_fraction)


# ---- prediction ----


def trained(device, classes, tau=1.0, **settings):
    """A loss whose thresholds differ much between classes, and logits of which the classes are shifted likewise."""
    shift = 10 * torch.randn(classes, device=device)
    labels = torch.randint(classes, (500,), device=device)
    x = torch.randn(500, classes, device=device) + 3 * torch.nn.functional.one_hot(labels, classes) + shift
    module = HyperSimplexLoss(classes, tau=tau, **settings).to(device)
    module(x, labels)
    return module.eval(), x, labels


def test_prediction_is_calibrated(device):
    module, x, labels = trained(device, 5)
    assert module.predict(x).dtype == torch.int64
    assert (module.predict(x) == labels).float().mean() > 0.9
    assert (x.argmax(1) == labels).float().mean() < 0.5
    assert_close(module.scores(x), x - module.running_threshold, 1e-6)


def test_prediction_with_a_temperature_per_class(device):
    tau = torch.tensor([0.5, 1.0, 2.0], device=device)
    module, x, _ = trained(device, 3, tau=tau)
    assert_close(module.scores(x), (x - module.running_threshold) / tau, 1e-6)
    assert torch.equal(module.predict(x), module.scores(x).argmax(1))


def test_prediction_at_every_position(device):
    module, _, _ = trained(device, 3)
    x = torch.randn(2, 3, 4, 5, device=device)
    by_sample = module.predict(x.movedim(1, -1).reshape(-1, 3)).reshape(2, 4, 5)
    assert torch.equal(module.predict(x), by_sample)


def test_binary_prediction(device):
    target = torch.rand(400, device=device) < 0.3
    x = torch.randn(400, device=device) + 4 * target + 20
    module = HyperSimplexLoss(1, tau=0.5).to(device)
    module(x, target)
    # The threshold of the projection: y >= 1/2.
    y = soft_binary_argmax(x, int(target.sum()), 0.5)
    assert torch.equal(module.predict(x), (y >= 0.5).long())
    assert (module.predict(x) == target).float().mean() > 0.9
    assert torch.equal(module.predict(x[:, None]), module.predict(x)[:, None])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_logits_are_compared_as_wide_as_the_thresholds(device, dtype):
    """In the dtype of the logits scores would be rounded to ties, and overflow."""
    module = HyperSimplexLoss(10, tau=1.5).to(device).eval()
    module.running_threshold.copy_(3 * torch.randn(10, device=device))
    x = (2 * torch.randn(5000, 10, device=device) + module.running_threshold).to(dtype)
    right = x.double() - module.running_threshold.double()
    assert torch.equal(module.predict(x), right.argmax(1))
    assert torch.equal(module.predict(x, multilabel=True), (right / 1.5 >= 0.5).long())
    for tau in (1e-4, 1e-40, torch.tensor(1e-40, dtype=torch.float64), torch.full((10,), 1e-30)):
        module.tau = tau
        assert torch.equal(module.predict(x), right.argmax(1))
    binary = HyperSimplexLoss(1).to(device).eval()
    binary.running_threshold.fill_(-0.4995)
    assert binary.predict(torch.zeros(1, dtype=dtype, device=device)).item() == 0


def test_a_single_sample_is_predicted_as_in_a_batch(device):
    module, x, labels = trained(device, 5)
    assert torch.equal(module.predict(x[0]), module.predict(x)[0])
    assert torch.equal(module.scores(x[0]), module.scores(x)[0])
    assert module.train()(x[0], labels[0]).ndim == 0
    with pytest.raises(ValueError, match=r"input must have 5 classes, got shape \[5\]"):
        module(x[0], x[0].sigmoid())


def test_dense_targets_make_the_kind_of_prediction_a_question(device):
    x, labels = batch(device)
    several = torch.rand(64, 4, device=device) < 0.5
    module = HyperSimplexLoss(4).to(device)
    module(x, labels)
    single = module.predict(x)
    module.eval()(x, several)
    assert torch.equal(module.predict(x), single)  # only training counts
    module.train()(x, several)
    restored = HyperSimplexLoss(4).to(device)
    restored.load_state_dict(module.state_dict())
    for twin in (module, restored, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        with pytest.raises(ValueError, match=r"ask for predict\(logits, multilabel=True\)"):
            twin.predict(x)
        assert torch.equal(twin.predict(x, multilabel=True), (twin.scores(x) >= 0.5).long())
        assert torch.equal(twin.predict(x, multilabel=False), twin.scores(x).argmax(1))
    module.reset_running_stats()
    assert module.predict(x).shape == (64,)
    binary = HyperSimplexLoss(1).to(device)
    binary(x[:, 0], several[:, 0])
    assert torch.equal(binary.predict(x[:, 0]), binary.predict(x[:, 0], multilabel=True))


def test_a_state_without_the_kind_of_targets_is_taken():
    module = HyperSimplexLoss(4)
    state = module.state_dict()
    del state["_extra_state"]
    module.load_state_dict(state)
    assert module.predict(torch.randn(3, 4)).shape == (3,)


def test_entries_left_out_do_not_count_as_inactive(device):
    x, target = torch.randn(64, 4, device=device), torch.rand(64, 4, device=device)
    target[::2] = -100
    module, kept = HyperSimplexLoss(4).to(device), HyperSimplexLoss(4).to(device)
    module(x, target)
    kept(x[1::2], target[1::2])
    assert_close(module.active_fraction, kept.active_fraction, 1e-6)


# ---- lazy, saved, copied, moved ----


def test_number_of_classes_from_the_first_input(device):
    module = HyperSimplexLoss(device=device)
    assert is_lazy(module.running_threshold)
    assert repr(module) == "HyperSimplexLoss()"
    x, labels = batch(device)
    expected = HyperSimplexLoss(4).to(device)
    assert torch.equal(module(x, labels), expected(x, labels))
    assert torch.equal(module.running_threshold, expected.running_threshold)
    assert repr(module) == "HyperSimplexLoss(num_classes=4)"
    binary = HyperSimplexLoss(device=device)
    binary(x[:, 0], labels > 1)
    assert binary.running_threshold.shape == (1,)


def test_saving_and_loading(device):
    x, labels = batch(device)
    module = HyperSimplexLoss(4).to(device)
    module(x, labels)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    state = torch.load(file)
    lazy = HyperSimplexLoss(device=device)
    lazy.load_state_dict(state)
    assert torch.equal(lazy.predict(x), module.predict(x))
    assert torch.equal(lazy(x, labels), module(x, labels))
    assert torch.equal(lazy.running_threshold, module.running_threshold)
    assert torch.equal(lazy.num_batches_tracked, module.num_batches_tracked)
    untouched = HyperSimplexLoss().state_dict()
    assert is_lazy(untouched["running_threshold"])
    with pytest.raises(RuntimeError, match="size mismatch for running_threshold"):
        HyperSimplexLoss(5).load_state_dict(state)


def test_copies(device):
    module = HyperSimplexLoss(tau=torch.nn.Parameter(torch.tensor(0.5)), device=device).to(device)
    x, labels = batch(device)
    module(x, labels)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        twin(x + 1, labels)
        assert twin.num_batches_tracked.tolist() == [2] * 4
        assert not torch.equal(twin.running_threshold, module.running_threshold)
    assert module.num_batches_tracked.tolist() == [1] * 4


def test_dtypes():
    assert HyperSimplexLoss(3, dtype=torch.float64).running_threshold.dtype == torch.float64
    assert HyperSimplexLoss(3, dtype=torch.bfloat16).running_threshold.dtype == torch.float32
    x, labels = batch("cpu", classes=3)
    for dtype in (torch.float16, torch.bfloat16):
        half = HyperSimplexLoss(3)
        assert half(x.to(dtype), labels).dtype == dtype
        assert half.running_threshold.dtype == torch.float32
        assert half.scores(x.to(dtype)).dtype == torch.float32
        assert half.double().scores(x.to(dtype)).dtype == torch.float64


def test_tensors_move_and_are_saved():
    module = HyperSimplexLoss(3, torch.ones(3), torch.full((3,), 0.5), weight=torch.ones(3))
    assert {"k", "tau", "weight"} < set(module.state_dict())
    assert module.to(torch.float64).tau.dtype == torch.float64


def test_learned_temperature(device):
    module = HyperSimplexLoss(4, tau=torch.nn.Parameter(torch.full((4,), 0.8))).to(device)
    x, labels = batch(device)
    module(x, labels).backward()
    assert (module.tau.grad != 0).all()
    assert_close(module.running_threshold, thresholds(x, labels, torch.full((4,), 0.8, device=device)), 1e-6)


def test_replicas_leave_the_original_alone():
    module = HyperSimplexLoss(4)
    replica = module._replicate_for_data_parallel()
    assert isinstance(replica, HyperSimplexLoss)
    with pytest.raises(RuntimeError, match="uninitialized"):
        HyperSimplexLoss()._replicate_for_data_parallel()
