"""`python -m hypersimplex_ext`: what this build is, and whether it works."""

import sys

import torch

from . import build_info, soft_binary_argmax


def main() -> int:
    """Print the build and the paper's illustration, computed on each device at hand; 0 if it came out right."""
    info = build_info()
    x, expected = torch.tensor([0.1, 1.6, 1.0]), torch.tensor([0.0, 0.8, 0.2])
    devices = ["cpu", "cuda"] if info.cuda and torch.cuda.is_available() else ["cpu"]
    results = {device: soft_binary_argmax(x.to(device), k=1).cpu() for device in devices}
    right = all(torch.allclose(y, expected, atol=1e-6) for y in results.values())
    shown = "; ".join(f"{', '.join(f'{v:.3g}' for v in y.tolist())} on {device}" for device, y in results.items())
    print(info)
    print(f"{'self-check':18}{'ok' if right else 'WRONG, 0, 0.8, 0.2 expected'}: 0.1, 1.6, 1 -> {shown}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
