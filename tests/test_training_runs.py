"""One training run: the losses, the networks, and the loop."""

import numpy as np
import pytest
import torch

from bench.training import methods, training
from bench.training.data import load
from bench.training.dataset import Dataset
from bench.training.methods import METHODS, OTHERS, ModifiedHuber, SoftmaxSquaredError, method, predict
from bench.training.networks import MODELS, augment
from bench.training.training import Run, train
from hypersimplex_ext import hypersimplex_loss

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def run_of(method="cross-entropy", batch_size=128, seed=0, epochs=1, lr=1e-3, **others):
    return Run("digits", "small", method, batch_size, seed, epochs, lr, **others)


def test_training_learns_and_repeats(digits):
    run = run_of("hypersimplex", batch_size=32, epochs=3)
    ticks = []
    record = train(run, digits, CPU, lambda: ticks.append(None))
    assert len(ticks) == 3
    assert Run.of(record) == run
    assert record["train_loss"][2] < record["train_loss"][0]
    assert all(max(curve) > 0.9 for way, curve in record["test"].items() if way != "argmax")
    assert all(0 < share < 1 for share in record["active"])
    assert (record["train_samples"], record["test_samples"]) == (898, 899)
    again = train(run, digits, CPU)
    assert again["train_loss"] == record["train_loss"]
    assert again["test"] == record["test"]


def test_methods_share_weights_and_order_at_one_seed(digits):
    """With a step of nearly 0 only initial weights and batch statistics are left, so the loss makes no difference."""
    first, other = (train(run_of(method, epochs=2, lr=1e-12), digits, CPU) for method in ("cross-entropy", "hinge"))
    assert first["test"] == other["test"]
    another_seed = train(run_of("hinge", seed=1, epochs=2, lr=1e-12), digits, CPU)
    assert first["test"] != another_seed["test"]


def test_evaluation_does_not_depend_on_its_batches(digits, monkeypatch):
    run = run_of("hypersimplex", batch_size=32, epochs=2)
    whole = train(run, digits, CPU)
    monkeypatch.setattr(training, "_EVALUATION_BATCH", 10)
    parts = train(run, digits, CPU)
    assert parts["train_loss"] == whole["train_loss"]
    for way, curve in whole["test"].items():
        assert parts["test"][way] == pytest.approx(curve, abs=1.5 / 899)  # one sample may be on edge


def test_batches_are_full_and_visit_no_sample_twice(digits, monkeypatch):
    seen = []

    class Loss(torch.nn.CrossEntropyLoss):
        def forward(self, logits, target):
            seen.append(target)
            return super().forward(logits, target)

    monkeypatch.setattr(training, "method", lambda name: methods.Method("spy", lambda num_classes: Loss()))
    numbered = Dataset(digits.train_x, torch.arange(898), digits.test_x, digits.test_y, num_classes=898)
    train(run_of("spy", batch_size=300, epochs=2), numbered, CPU)
    assert [len(target) for target in seen] == [300, 300] * 2
    epochs = torch.cat(seen).view(2, 600)
    assert all(len(epoch.unique()) == 600 for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])


def test_batch_larger_than_the_training_set(digits):
    with pytest.raises(ValueError, match="batch size: expected at most the 898 training samples, got 899"):
        train(run_of(batch_size=899), digits, CPU)


def test_methods_are_what_their_names_say():
    logits, target = torch.randn(40, 10), torch.arange(40) % 10
    one_hot = torch.eye(10)[target]
    normal = (logits - logits.mean(0)) / (logits.var(0, correction=0) + 1e-5).sqrt()

    def huber(x):
        """As the Fenchel-Young loss of one entry at a threshold of 0."""
        return ((x - one_hot) ** 2 / 2 - (x - x.clamp(0, 1)) ** 2 / 2).mean()

    middle = (logits / 1.5 + one_hot) / 2
    expected = {
        "cross-entropy": -logits.log_softmax(1)[range(40), target].mean(),
        "smoothed": -(logits.log_softmax(1) * (0.9 * one_hot + 0.01)).sum(1).mean(),
        "hinge": ((1 + logits - logits.gather(1, target[:, None])).clamp(min=0).sum() - 40) / 400,
        "mse": ((logits.softmax(1) - one_hot) ** 2).mean(),
        "huber": huber(logits / 1.5),
        "huber-normalised": huber(normal / 1.5),
        "hypersimplex-published": hypersimplex_loss(logits, target, k=0.5, tau=1.5),
        "hypersimplex": hypersimplex_loss(logits, target, k="targets", tau=1.5),
        "fenchel-young": hypersimplex_loss(logits, target, k="targets", tau=1.5, kind="fenchel_young"),
        "fitzpatrick": 2 * hypersimplex_loss(middle, target, k="targets", kind="fenchel_young"),
        "hypersimplex@k=1/C,tau=3": hypersimplex_loss(logits, target, k=0.1, tau=3),
        "fenchel-young@tau=learned": hypersimplex_loss(logits, target, tau=1.5, kind="fenchel_young"),
    }
    assert expected.keys() >= (METHODS | OTHERS).keys()
    for name, value in expected.items():
        torch.testing.assert_close(method(name).loss(10)(logits, target), value, msg=name)


def test_tau_that_is_suggested_makes_half_of_the_first_batch_active():
    logits, target = 7 * torch.randn(400, 10), torch.arange(400) % 10
    loss = method("hypersimplex@tau=suggested").loss(10)
    loss(logits, target)
    tau = loss.tau
    assert float(loss.active_fraction) == pytest.approx(0.5, abs=0.1)
    loss(logits / 100, target)
    assert loss.tau == tau


def test_tau_that_is_learned_stays_positive():
    logits, target = torch.randn(40, 10), torch.arange(40) % 10
    loss = method("hypersimplex@tau=learned").loss(10)
    optimizer = torch.optim.SGD(loss.parameters(), 10.0)
    for _ in range(5):
        optimizer.zero_grad()
        loss(logits, target).backward()
        optimizer.step()
    assert 0 < loss.tau.item() != 1.5
    assert predict("calibrated", loss.eval(), logits, logits, target).shape == (40,)


def test_only_calibrated_predictions_see_through_a_shift_of_a_class():
    target = torch.arange(40) % 10
    logits = 8.0 * torch.eye(10)[target] + torch.randn(40, 10)
    shifted = logits + torch.linspace(0, 900, 10)
    for name, how in (METHODS | OTHERS).items():
        loss = how.loss(10)
        for _ in range(100):  # batch normalisation averages exponentially from a start of 0
            loss(shifted, target)
        for way in how.predictions:
            correct = (predict(way, loss.eval(), shifted, shifted, target) == target).double().mean()
            assert correct == (0.1 if way == "argmax" else 1.0), (name, way)
    calibrated = {name for name, how in METHODS.items() if how.predictions[0] != "argmax"}
    assert calibrated == {"huber-normalised", "hypersimplex", "fenchel-young"}


def test_modified_huber_is_differentiable():
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(ModifiedHuber(), (logits, torch.tensor([0, 2, 1, 1, 0])))


def test_softmax_squared_error_is_differentiable():
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(SoftmaxSquaredError(), (logits, torch.tensor([0, 2, 1, 1, 0])))


def dataset(*shape, num_classes=10):
    x, y = torch.zeros(shape), torch.zeros(shape[0], dtype=torch.int64)
    return Dataset(x, y, x, y, num_classes)


def test_networks():
    published = MODELS["published"](dataset(2, 3, 32, 32))
    convolutions = 3 * 9 * 64 + 64 + 3 * (64 * 9 * 64 + 64) + 4 * 128
    assert sum(p.numel() for p in published.parameters()) == convolutions + (64 * 8 * 8 + 1) * 512 + 513 * 10
    for shape in ((2, 3, 32, 32), (2, 1, 28, 28), (2, 1, 8, 8)):
        for model in MODELS.values():
            data = dataset(*shape)
            assert model(data)(data.train_x).shape == (2, 10)
    data = dataset(2, 105, num_classes=2)
    assert MODELS["mlp"](data)(data.train_x).shape == (2, 2)


@pytest.mark.parametrize("name", ["small", "published"])
def test_convolutions_want_images(name):
    with pytest.raises(ValueError, match=rf"model: expected mlp for features of shape \[105\], got {name}"):
        MODELS[name](dataset(2, 105, num_classes=2))


def test_two_classes_have_an_average_precision():
    torch.manual_seed(0)
    y = (torch.rand(400) < 0.3).long()
    x = torch.randn(400, 5) + 2 * y[:, None]
    data = Dataset(x, y, x, y, 2, metric="average_precision")
    record = train(Run("digits", "mlp", "mse", 50, 0, 3, 1e-2, held_out=0.25), data, CPU)
    for split in ("test", "validation"):
        assert record[split].keys() == {"argmax", "average_precision"}
        assert record[split]["average_precision"][-1] > 0.9
    assert (record["metric"], record["train_samples"]) == ("average_precision", 300)


def test_augmentation_is_a_setting(digits, monkeypatch):
    seen = []
    monkeypatch.setattr(training, "augment", lambda images, padding, flip: seen.append((padding, flip)) or images)
    train(run_of(batch_size=449), digits, CPU)
    assert seen == []
    train(run_of(batch_size=449, augmented=True), digits, CPU)
    assert seen == [(0, False)] * 2


def test_bfloat16_and_compiled_training(digits, monkeypatch):
    """The network in bfloat16, the loss in float32; compiled the same but for rounding (here by the eager backend)."""
    expected = train(run_of("hypersimplex", batch_size=32, epochs=2), digits, CPU)
    half = train(run_of("hypersimplex", batch_size=32, epochs=2, precision="bfloat16"), digits, CPU)
    compiled, compile_ = [], torch.compile

    def spied(function):
        compiled.append(function)
        return compile_(function, backend="eager")

    monkeypatch.setattr(torch, "compile", spied)
    whole = train(run_of("hypersimplex", batch_size=32, epochs=2), digits, CPU, compiled=True)
    assert len(compiled) == 1
    assert whole["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-3)
    assert half["train_loss"] != expected["train_loss"]
    assert half["train_loss"] == pytest.approx(expected["train_loss"], rel=0.1)


def test_augmentation_shifts_and_mirrors():
    images = torch.arange(2 * 5 * 6, dtype=torch.float32).view(1, 2, 5, 6).expand(400, -1, -1, -1)
    padded = np.pad(images[0].numpy(), ((0, 0), (2, 2), (2, 2)), mode="reflect")
    windows = [padded[:, i : i + 5, j : j + 6] for i in range(5) for j in range(5)]
    mirrored = [window[:, :, ::-1] for window in windows]

    def found(outputs, candidates):
        return {next((i for i, c in enumerate(candidates) if np.array_equal(o, c)), None) for o in outputs.numpy()}

    assert found(augment(images, 2, flip=False), windows) == set(range(25))
    assert found(augment(images, 2, flip=True), windows + mirrored) == set(range(50))
    assert found(augment(images, 0, flip=True), [images[0].numpy(), images[0].numpy()[:, :, ::-1]]) == {0, 1}
    assert augment(images, 0, flip=False) is images
