"""Train on batches of 1024 in the memory of 64 samples: in two passes, and with the losses of micro-batches added up.

    python examples/large_batch_small_memory.py

The HyperSimplex loss compares the samples of a batch with each other, so that the losses of micro-batches do not add up
to that of the batch. `two_pass_backward` gives the gradient of the whole batch, in the memory of one micro-batch. The
table tells how far each way's gradient is from that at the end of training; images as easy as these are learned anyway.
Needs scikit-learn, for its images of digits.
"""

import time

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from hypersimplex_ext.batch import two_pass_backward
from hypersimplex_ext.nn import HyperSimplexLoss

BATCH, MICRO_BATCH, STEPS = 1024, 64, 60
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def at_once(model, loss, x, y):
    """Go backward with the whole batch, which fits here: what the others are compared with."""
    loss(model(x), y).backward()


def two_passes(model, loss, x, y):
    """Go backward by micro-batches, with the gradient of the whole batch."""
    two_pass_backward(model, loss, zip(x.split(MICRO_BATCH), y.split(MICRO_BATCH), strict=True))


def added_up(model, loss, x, y):
    """Go backward by micro-batches, each with a loss of its own: the gradient of something else."""
    for rows, labels in zip(x.split(MICRO_BATCH), y.split(MICRO_BATCH), strict=True):
        (loss(model(rows), labels) * (len(labels) / len(y))).backward()


def train(backward, x, y):
    """Train a network; return it, its loss, and the peak memory in MiB on a GPU."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        *(torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.ReLU()),
        *(torch.nn.Conv2d(16, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten()),
        *(torch.nn.Linear(256, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)),
    ).to(DEVICE)
    loss = HyperSimplexLoss(num_classes=10, tau=1.5).to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(STEPS):
        batch = torch.randperm(len(y), device=DEVICE)[:BATCH]
        optimizer.zero_grad()
        backward(model, loss, x[batch], y[batch])
        optimizer.step()
    memory = torch.cuda.max_memory_allocated() / 2**20 if DEVICE.type == "cuda" else None
    return model, loss, memory


def gradient(backward, model, loss, x, y):
    """Return the gradient in all parameters together."""
    model.zero_grad()
    backward(model, loss, x[:BATCH], y[:BATCH])
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def main():
    """Train in each way and print what came of it."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    parts = train_test_split(images, torch.tensor(labels), test_size=0.3, stratify=labels, random_state=0)
    train_x, test_x, train_y, test_y = (part.to(DEVICE) for part in parts)
    print("way         gradient off by, %  test accuracy, %  seconds  peak memory, MiB")
    for backward in (at_once, two_passes, added_up):
        start = time.perf_counter()
        model, loss, memory = train(backward, train_x, train_y)
        seconds = time.perf_counter() - start
        with torch.no_grad():
            accuracy = (loss.predict(model(test_x)) == test_y).double().mean().item()
        due, found = (gradient(way, model, loss, train_x, train_y) for way in (at_once, backward))
        off = ((found - due).norm() / due.norm()).item()
        peak = "-" if memory is None else f"{memory:.0f}"  # told by a GPU alone
        print(f"{backward.__name__:10}{100 * off:20.4f}{100 * accuracy:18.2f}{seconds:9.1f}{peak:>18}")


if __name__ == "__main__":
    main()
