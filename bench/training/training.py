"""Train one network with one loss.

The protocol is the one of the experiments in C. Gomez, P. Wang, L. Tang, "Differentiable Zero-One Loss via Hypersimplex
Projections", PAKDD 2026 (arXiv 2602.23336): Adam with a constant step, no weight decay, accuracy on the test set after
every epoch. Runs that share a seed share initial weights, order of the samples and augmentation, whatever their loss.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.results import Record, environment
from bench.training.dataset import Dataset
from bench.training.methods import CALIBRATED, Method, method, predict
from bench.training.networks import MODELS, augment

_EVALUATION_BATCH = 2048
_CALIBRATION_SAMPLES = 10_000
AVERAGE_PRECISION = "average_precision"


@dataclasses.dataclass(frozen=True)
class Run:
    """The settings that determine one training run; equal settings mean the same run.

    Attributes:
        data: name of the data set.
        model: name of the network.
        method: name of the loss and what goes with it.
        batch_size: samples of a step.
        seed: draws weights, order, augmentation, what is held out, and the split of data sets without one.
        epochs: passes over the training samples.
        lr: step size of Adam.
        held_out: share of the training samples that are held out for validation.
        precision: of the network, "float32" or "bfloat16" (autocast).
        augmented: whether training images are shifted and mirrored as the data set says.
    """

    data: str
    model: str
    method: str
    batch_size: int
    seed: int
    epochs: int
    lr: float
    held_out: float = 0.0
    precision: str = "float32"
    augmented: bool = False

    @classmethod
    def of(cls, record: Record) -> Run:
        """Return the run whose result a record holds."""
        return cls(**{field.name: record[field.name] for field in dataclasses.fields(cls)})


def train(
    run: Run,
    data: Dataset,
    device: torch.device,
    on_epoch: Callable[[], None] = lambda: None,
    *,
    compiled: bool = False,
) -> Record:
    """Train a network and return its record.

    Every epoch visits the training samples in a new random order in batches of exactly `run.batch_size`; the samples
    left over sit out that epoch (a loss that couples the samples of a batch sees a different problem in a short one).

    Args:
        run: the settings.
        data: the data set, on any device, nothing held out.
        device: where to train.
        on_epoch: called after every epoch; whatever it raises ends the run.
        compiled: compile network and loss with `torch.compile`.

    Returns:
        The settings, the number of training and test samples, the mean training loss per epoch, per split of
        `Dataset.splits` and way to predict the accuracy after every epoch (of two classes also the average precision of
        the second), the share of active entries in the last batch of an epoch, the seconds taken, and the environment.

    Raises:
        ValueError: the batch size exceeds the number of training samples.
    """
    data = data.held_out(run.held_out, run.seed)
    samples = len(data.train_y)
    steps = samples // run.batch_size
    if steps == 0:
        raise ValueError(f"batch size: expected at most the {samples} training samples, got {run.batch_size}")
    data = data.to(device)
    how = method(run.method)
    torch.manual_seed(run.seed)
    shuffling = torch.Generator().manual_seed(run.seed)
    model = MODELS[run.model](data).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    loss = how.loss(data.num_classes).to(device)
    optimizer = torch.optim.Adam([*model.parameters(), *loss.parameters()], lr=run.lr, fused=True)

    def step(inputs: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=run.precision == "bfloat16"):
            logits = model(inputs)
        value: Tensor = loss(logits.float(), target)
        return value

    if compiled:
        step = torch.compile(step)
    losses: list[float] = []
    scores: dict[str, dict[str, list[float]]] = {}
    active: list[float | None] = []
    start = time.perf_counter()
    for _ in range(run.epochs):
        model.train()
        loss.train()
        total = torch.zeros((), device=device)
        order = torch.randperm(samples, generator=shuffling).to(device)
        for batch in order[: steps * run.batch_size].view(steps, run.batch_size):
            inputs, target = data.train_x[batch], data.train_y[batch]
            if run.augmented:
                inputs = augment(inputs, data.crop_padding, flip=data.flip)
            optimizer.zero_grad()
            value = step(inputs, target)
            value.backward()
            optimizer.step()
            total += value.detach()
        losses.append(float(f"{float(total) / steps:.6g}"))
        share = getattr(loss, "active_fraction", None)
        active.append(None if share is None else round(float(share), 4))
        for split, measures in _scores(how, model, loss, data).items():
            for measure, score in measures.items():
                scores.setdefault(split, {}).setdefault(measure, []).append(round(score, 5))
        on_epoch()
    return {
        **dataclasses.asdict(run),
        "metric": data.metric,
        "train_samples": samples,
        "test_samples": len(data.test_y),
        "train_loss": losses,
        **scores,
        "active": None if None in active else active,
        "seconds": round(time.perf_counter() - start, 3),
        **environment(device),
    }


def check(record: Record) -> None:
    """Raise KeyError, TypeError, ValueError or AttributeError unless this is a record of a run."""
    run = Run.of(record)
    hash(run)
    method(run.method)
    for name in ("train_samples", "test_samples", "train_loss"):
        record[name]
    for way in method(run.method).predictions:
        if len([float(value) for value in record["test"][way]]) != run.epochs:
            raise ValueError(f"{way}: expected {run.epochs} values")


@torch.inference_mode()
def _scores(how: Method, model: nn.Module, loss: nn.Module, data: Dataset) -> dict[str, dict[str, float]]:
    """Return by split and measure how good the predictions are."""
    model.eval()
    loss.eval()

    def logits_of(x: Tensor) -> Tensor:
        return torch.cat([model(inputs) for inputs in torch.split(x, _EVALUATION_BATCH)])

    y = data.train_y[:_CALIBRATION_SAMPLES]
    x = logits_of(data.train_x[: len(y)]) if CALIBRATED in how.predictions else torch.empty(0)
    scores: dict[str, dict[str, float]] = {}
    for split, (inputs, labels) in data.splits().items():
        logits = logits_of(inputs)
        scores[split] = {
            way: float((predict(way, loss, logits, x, y) == labels).double().mean()) for way in how.predictions
        }
        if data.num_classes == 2:
            from sklearn.metrics import average_precision_score  # type: ignore[import-untyped]

            differences = (logits[:, 1] - logits[:, 0]).nan_to_num().cpu().numpy()
            scores[split][AVERAGE_PRECISION] = float(average_precision_score(labels.cpu().numpy(), differences))
    return scores
