"""Random weights of a small ESRGAN, and its formula."""

import torch
from torch.nn.functional import conv2d, interpolate, leaky_relu, pixel_unshuffle

GROWTH = 32  # channels added by each convolution of a dense block, the same in all published files


def esrgan(width: int = 4, blocks: int = 2, doublings: int = 2, folds: int = 1) -> dict[str, torch.Tensor]:
    """The weights of a network with a scale of 2 ** doublings / folds, with Real-ESRGAN's names."""
    draw, sizes = torch.Generator().manual_seed(0), {"conv_first": (width, 3 * folds**2)}
    for block in (f"body.{n}.rdb{k}.conv" for n in range(blocks) for k in (1, 2, 3)):
        sizes |= {f"{block}{n}": (width if n == 5 else GROWTH, width + (n - 1) * GROWTH) for n in range(1, 6)}
    sizes |= {
        name: (width, width) for name in ("conv_body", *(f"conv_up{n}" for n in range(1, doublings + 1)), "conv_hr")
    }
    sizes["conv_last"] = (3, width)
    state = {}
    for name, (outward, inward) in sizes.items():
        state[f"{name}.weight"] = torch.randn(outward, inward, 3, 3, generator=draw) / (3 * inward**0.5)
        state[f"{name}.bias"] = torch.randn(outward, generator=draw) / 10
    return state


def upscaled(state: dict[str, torch.Tensor], x: torch.Tensor, folds: int = 1) -> torch.Tensor:
    """The network's formula (Wang et al. 2018, arXiv:1809.00219) for images [B, 3, H, W] in 0..1."""

    def conv(name: str, x: torch.Tensor) -> torch.Tensor:
        return conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    first = inner = conv("conv_first", pixel_unshuffle(x, folds) if folds > 1 else x)
    for block in sorted({name.split(".rdb")[0] for name in state if ".rdb" in name}):
        before = inner
        for dense in (f"{block}.rdb{number}.conv" for number in (1, 2, 3)):
            features = inner
            for number in range(1, 5):
                features = torch.cat([features, leaky_relu(conv(f"{dense}{number}", features), 0.2)], dim=1)
            inner = inner + 0.2 * conv(f"{dense}5", features)
        inner = before + 0.2 * inner
    x = first + conv("conv_body", inner)
    for name in sorted({name.split(".")[0] for name in state if name.startswith("conv_up")}):
        x = leaky_relu(conv(name, interpolate(x, scale_factor=2, mode="nearest")), 0.2)
    return conv("conv_last", leaky_relu(conv("conv_hr", x), 0.2))
