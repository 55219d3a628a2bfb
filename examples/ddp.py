"""The loss of a batch that is spread over processes, under DistributedDataParallel.

    torchrun --nproc-per-node 4 examples/ddp.py

Each process has its part of every batch of scikit-learn's digits. With `group` the loss is that of the whole batch:
losses, thresholds and accuracy are those of one process that has it all, which this script trains beside them. Without
`group` each process projects its own part, which is another loss.
"""

from __future__ import annotations

import os

import torch
from sklearn.datasets import load_digits
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from hypersimplex_ext.nn import HyperSimplexLoss

BATCH, EPOCHS, HELD_OUT = 120, 8, 357


def digits() -> tuple[Tensor, Tensor]:
    """Pixels [n, 64] in [0, 1] and labels [n], shuffled."""
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return torch.tensor(pixels)[order] / 16, torch.tensor(labels)[order]


def train(group: distributed.ProcessGroup | None, exact: bool) -> tuple[float, HyperSimplexLoss, float]:
    """The last loss, the loss module, and the accuracy; over the processes of `group`, if there is one."""
    rank, size = (0, 1) if group is None else (distributed.get_rank(group), distributed.get_world_size(group))
    torch.manual_seed(0)  # the same network in all processes
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).double()  # training enlarges rounding
    model: nn.Module = network if group is None else DistributedDataParallel(network, process_group=group)
    criterion = HyperSimplexLoss(10, tau=0.5, group=group if exact else None)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    x, y = digits()
    held_out, (x, y) = (x[:HELD_OUT], y[:HELD_OUT]), (x[HELD_OUT:], y[HELD_OUT:])
    loss = torch.zeros(())
    for epoch in range(EPOCHS):
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(epoch))
        for batch in order.split(BATCH):
            mine = batch[rank::size]
            optimizer.zero_grad()
            loss = criterion(model(x[mine]), y[mine])
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        accuracy = (criterion.predict(network(held_out[0])) == held_out[1]).float().mean()
    del model  # before its group is destroyed
    return loss.item(), criterion, accuracy.item()


def main() -> None:
    """Train in each way, and print what came out."""
    if "RANK" not in os.environ:
        raise SystemExit("run as: torchrun --nproc-per-node 4 examples/ddp.py")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    group = distributed.group.WORLD
    loss, criterion, accuracy = train(group, exact=True)
    own_loss, own, own_accuracy = train(group, exact=False)
    if distributed.get_rank() == 0:
        alone_loss, alone, alone_accuracy = train(None, exact=True)
        print(f"{'':28}last loss  accuracy  thresholds, at most off by")
        for name, value, module, share in (
            ("one process", alone_loss, alone, alone_accuracy),
            (f"{distributed.get_world_size()} processes, group", loss, criterion, accuracy),
            (f"{distributed.get_world_size()} processes, each its own", own_loss, own, own_accuracy),
        ):
            off = (module.running_threshold - alone.running_threshold).abs().max()
            print(f"{name:28}{value:9.5f}  {share:8.2%}  {off:.1e}")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
