"""What the tests of two passes share: small networks, micro-batches, and what is due."""

import copy

import torch

from hypersimplex_ext.nn import HyperSimplexLoss

from .cases import assert_close

FEATURES, HIDDEN, CLASSES, SAMPLES = 6, 8, 4, 50
SIZES = [7, 16, 2, 15, 10]


def network(*middle, device="cpu"):
    layers = torch.nn.Linear(FEATURES, HIDDEN), *middle, torch.nn.Tanh(), torch.nn.Linear(HIDDEN, CLASSES)
    return torch.nn.Sequential(*layers).to(device, torch.float64)


def criterion(tau=1.5, **settings):
    """A loss with a parameter of its own."""
    tau = torch.nn.Parameter(torch.full((CLASSES,), tau, dtype=torch.float64))
    return HyperSimplexLoss(CLASSES, tau=tau, dtype=torch.float64, **settings)


def split(*tensors, sizes=SIZES):
    return list(zip(*(t.split(sizes) for t in tensors), strict=True))


class Wrapped(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *arguments):
        return self.function(*arguments)


def joint(model, loss, micro_batches, scaler=None):
    """What two passes promise, with every graph in memory at once."""
    rows = [(model(x), *others) for x, *others in micro_batches]
    value = loss(*map(torch.cat, zip(*rows, strict=True)))
    (value if scaler is None else scaler.scale(value)).backward()
    return value.detach()


def whole(model, loss, micro_batches):
    """One batch, one forward, one backward."""
    return joint(model, loss, [list(map(torch.cat, zip(*micro_batches, strict=True)))])


def gradients(*modules):
    return torch.cat([p.grad.flatten() for module in modules for p in module.parameters()])


def assert_alike(route, model, loss, micro_batches, tolerance=1e-10, due=joint):
    """Value, gradients, buffers and random state after this route and after the one that is due."""
    seen = []
    for way in (route, due):
        own_model, own_loss = copy.deepcopy((model, loss))
        torch.manual_seed(1)
        value = way(own_model, own_loss, micro_batches)
        moved = [b.double() for b in (*own_model.buffers(), *own_loss.buffers())]
        seen.append((value, gradients(own_model, own_loss), moved, torch.rand(3)))
    (value, gradient, buffers, random), (value_due, gradient_due, buffers_due, random_due) = seen
    assert_close(value, value_due, tolerance)
    assert_close(gradient, gradient_due, tolerance)
    assert gradient_due.any()
    for b, d in zip(buffers, buffers_due, strict=True):
        assert_close(b, d, tolerance)
    assert torch.equal(random, random_due)
