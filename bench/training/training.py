"""Train one network with one loss: the methods that are compared, the networks, and the training loop.

The protocol is the one of the experiments in C. Gomez, P. Wang, L. Tang, "Differentiable Zero-One Loss via Hypersimplex
Projections", PAKDD 2026 (arXiv 2602.23336): Adam with a constant step, no weight decay, accuracy on the test set after
every epoch. Runs that share a seed share initial weights, order of the samples and augmentation, whatever their loss.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.results import Record, environment
from bench.training.data import Dataset
from hypersimplex_ext.nn import HyperSimplexLoss

_EVALUATION_BATCH = 2048


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to train and to predict.

    Attributes:
        label: the name readers see.
        loss: number of classes -> module called as loss(logits [n, C], class indices [n]).
        calibrated: predict with the loss's own `predict(logits)` instead of the plain argmax of the logits.
    """

    label: str
    loss: Callable[[int], nn.Module]
    calibrated: bool = False

    def predict(self, loss: nn.Module, logits: Tensor) -> Tensor:
        """Return the predicted class indices [n] for logits [n, C]."""
        labels: Tensor = loss.predict(logits) if self.calibrated else logits.argmax(dim=1)  # type: ignore[operator]
        return labels


class SoftmaxSquaredError(nn.Module):
    """Mean squared error between softmax probabilities and one-hot labels (the multi-class Brier score, over C)."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean over samples and classes for logits [n, C] and class indices [n]."""
        one_hot = functional.one_hot(target, logits.shape[1]).to(logits.dtype)
        return functional.mse_loss(logits.softmax(dim=1), one_hot)


def hypersimplex(
    label: str, k: Literal["targets"] | float, tau: float, kind: str = "squared", *, calibrated: bool = True
) -> Method:
    """Return the method that trains with `HyperSimplexLoss`; sweeps over k or tau are tables of these."""
    return Method(label, lambda num_classes: HyperSimplexLoss(num_classes, k=k, tau=tau, kind=kind), calibrated)


BASELINE = "cross-entropy"

METHODS = {
    BASELINE: Method("cross-entropy", lambda num_classes: nn.CrossEntropyLoss()),
    "hinge": Method("hinge", lambda num_classes: nn.MultiMarginLoss()),
    "mse": Method("MSE", lambda num_classes: SoftmaxSquaredError()),
    "hypersimplex-published": hypersimplex("HyperSimplex, as published", k=0.5, tau=1.5, calibrated=False),
    "hypersimplex": hypersimplex("HyperSimplex, calibrated", k="targets", tau=1.5),
    "fenchel-young": hypersimplex("Fenchel-Young, calibrated", k="targets", tau=1.5, kind="fenchel_young"),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """The settings that determine one training run; equal settings mean the same run."""

    data: str
    method: str
    batch_size: int
    seed: int
    epochs: int
    lr: float

    @classmethod
    def of(cls, record: Record) -> Run:
        """Return the run whose result a record holds."""
        return cls(**{field.name: record[field.name] for field in dataclasses.fields(cls)})


def network(data: Dataset) -> nn.Sequential:
    """Return an untrained network for a data set.

    Images: blocks of two 3 x 3 convolutions with batch normalisation and a halving max-pool, then two linear layers.
    Two blocks of 64 channels and 512 hidden units are the published network; images under 16 pixels (digits) get one
    block of 16 channels and 64 hidden units. Features: two hidden layers of 64 units.
    """
    if data.train_x.dim() == 2:
        width = data.train_x.shape[1]
        return nn.Sequential(
            *(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, data.num_classes))
        )
    channels, height, width = data.train_x.shape[1:]
    blocks, features, hidden = (1, 16, 64) if height < 16 else (2, 64, 512)
    layers: list[nn.Module] = []
    for _ in range(blocks):
        layers += [nn.Conv2d(channels, features, 3, padding=1), nn.BatchNorm2d(features), nn.ReLU()]
        layers += [nn.Conv2d(features, features, 3, padding=1), nn.BatchNorm2d(features), nn.MaxPool2d(2), nn.ReLU()]
        channels, height, width = features, height // 2, width // 2
    layers += [nn.Flatten(), nn.Linear(channels * height * width, hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, data.num_classes))


def augment(images: Tensor, crop_padding: int, *, flip: bool) -> Tensor:
    """Shift each image by up to `crop_padding` pixels (reflected at the border) and mirror half of them if `flip`."""
    if not crop_padding and not flip:
        return images
    n, channels, height, width = images.shape
    device = images.device

    def shifts() -> Tensor:
        return torch.randint(2 * crop_padding + 1, (n, 1), device=device)

    rows = torch.arange(height, device=device) + shifts()  # [n, height]
    columns = torch.arange(width, device=device) + shifts()  # [n, width]
    if flip:
        columns = torch.where(torch.rand(n, 1, device=device) < 0.5, columns.flip(1), columns)
    padded = functional.pad(images, (crop_padding,) * 4, mode="reflect")
    sample = torch.arange(n, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[:, None, None]
    return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]


def train(run: Run, data: Dataset, device: torch.device, on_epoch: Callable[[], None] = lambda: None) -> Record:
    """Train a network and return its record.

    Every epoch visits the training samples in a new random order in batches of exactly `run.batch_size`; the samples
    left over sit out that epoch (a loss that couples the samples of a batch sees a different problem in a short one).

    Args:
        run: the settings.
        data: the data set, on any device.
        device: where to train.
        on_epoch: called after every epoch; whatever it raises ends the run.

    Returns:
        The settings, the number of training and test samples, per epoch the mean training loss and the accuracy on the
        test set, the seconds taken, and the environment.

    Raises:
        ValueError: the batch size exceeds the number of training samples.
    """
    samples = len(data.train_y)
    steps = samples // run.batch_size
    if steps == 0:
        raise ValueError(f"batch size: expected at most the {samples} training samples, got {run.batch_size}")
    data = data.to(device)
    method = METHODS[run.method]
    torch.manual_seed(run.seed)
    shuffling = torch.Generator().manual_seed(run.seed)
    model = network(data).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    loss = method.loss(data.num_classes).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=run.lr, fused=True)
    losses: list[float] = []
    accuracies: list[float] = []
    start = time.perf_counter()
    for _ in range(run.epochs):
        model.train()
        loss.train()
        total = torch.zeros((), device=device)
        order = torch.randperm(samples, generator=shuffling).to(device)
        for batch in order[: steps * run.batch_size].view(steps, run.batch_size):
            inputs = augment(data.train_x[batch], data.crop_padding, flip=data.flip)
            optimizer.zero_grad()
            value = loss(model(inputs), data.train_y[batch])
            value.backward()
            optimizer.step()
            total += value.detach()
        losses.append(float(total) / steps)
        accuracies.append(_accuracy(method, model, loss, data))
        on_epoch()
    return {
        **dataclasses.asdict(run),
        "train_samples": samples,
        "test_samples": len(data.test_y),
        "train_loss": losses,
        "test_accuracy": accuracies,
        "seconds": round(time.perf_counter() - start, 3),
        **environment(device),
    }


@torch.inference_mode()
def _accuracy(method: Method, model: nn.Module, loss: nn.Module, data: Dataset) -> float:
    model.eval()
    loss.eval()
    logits = torch.cat([model(inputs) for inputs in torch.split(data.test_x, _EVALUATION_BATCH)])
    return float((method.predict(loss, logits) == data.test_y).double().mean())
