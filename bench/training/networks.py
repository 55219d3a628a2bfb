"""The networks, and how training images are varied."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.training.dataset import Dataset


def published(data: Dataset) -> nn.Sequential:
    """The paper's network: two blocks of 64 channels, 512 hidden units."""
    return _blocks(data, _images(data, "published"), blocks=2, features=64, hidden=512)


def small(data: Dataset) -> nn.Sequential:
    """A convolutional network for two cores.

    Images under 16 pixels: one block of 16 channels, 64 hidden units. Others: two 3 x 3 convolutions with a stride of
    2, of 16 and of 32 channels, with batch normalisation, then 64 hidden units.
    """
    channels, height, width = _images(data, "small")
    if height < 16:
        return _blocks(data, (channels, height, width), blocks=1, features=16, hidden=64)
    layers: list[nn.Module] = []
    for features in (16, 32):
        layers += [nn.Conv2d(channels, features, 3, padding=1, stride=2), nn.BatchNorm2d(features), nn.ReLU()]
        channels, height, width = features, (height + 1) // 2, (width + 1) // 2
    return nn.Sequential(*layers, *_head(channels * height * width, 64, data.num_classes))


def mlp(data: Dataset) -> nn.Sequential:
    """One hidden layer of 256 units for images, two of 64 for features."""
    width = data.train_x[0].numel()
    if data.train_x.dim() > 2:
        return nn.Sequential(*_head(width, 256, data.num_classes))
    return nn.Sequential(nn.Linear(width, 64), nn.ReLU(), *_head(64, 64, data.num_classes)[1:])


def _images(data: Dataset, model: str) -> tuple[int, int, int]:
    """Return channels, height and width."""
    if data.train_x.dim() != 4:
        raise ValueError(f"model: expected mlp for features of shape {list(data.train_x.shape[1:])}, got {model}")
    channels, height, width = data.train_x.shape[1:]
    return channels, height, width


def _blocks(data: Dataset, shape: tuple[int, int, int], blocks: int, features: int, hidden: int) -> nn.Sequential:
    """Blocks of two 3 x 3 convolutions with batch normalisation and a halving max-pool, then two linear layers."""
    channels, height, width = shape
    layers: list[nn.Module] = []
    for _ in range(blocks):
        layers += [nn.Conv2d(channels, features, 3, padding=1), nn.BatchNorm2d(features), nn.ReLU()]
        layers += [nn.Conv2d(features, features, 3, padding=1), nn.BatchNorm2d(features), nn.MaxPool2d(2), nn.ReLU()]
        channels, height, width = features, height // 2, width // 2
    return nn.Sequential(*layers, *_head(channels * height * width, hidden, data.num_classes))


def _head(width: int, hidden: int, num_classes: int) -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)]


MODELS = {"mlp": mlp, "small": small, "published": published}


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
