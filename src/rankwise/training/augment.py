"""Random changes of pictures. The dense network answers the changed ones, so no labels are needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Augment = Callable[[Any], Any]


def flip(x_NCHW: Tensor) -> Tensor:
    """Mirror half of the pictures, chosen at random, left to right."""
    chosen = torch.rand(len(x_NCHW), device=x_NCHW.device) < 0.5
    return torch.where(chosen.view(-1, 1, 1, 1), x_NCHW.flip(3), x_NCHW)


def crop(x_NCHW: Tensor) -> Tensor:
    """Shift each picture by up to an eighth of its sides, mirrored at the border."""
    N, _, H, W = x_NCHW.shape
    tall, wide = H // 8, W // 8
    padded = F.pad(x_NCHW, (wide, wide, tall, tall), mode="reflect")

    def places(side: int, margin: int) -> Tensor:
        start = torch.randint(2 * margin + 1, (N, 1), device=x_NCHW.device)
        return start + torch.arange(side, device=x_NCHW.device)

    rows_NH, columns_NW = places(H, tall), places(W, wide)
    number_N = torch.arange(N, device=x_NCHW.device)
    picked = padded.permute(0, 2, 3, 1)[number_N[:, None, None], rows_NH[:, :, None], columns_NW[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()


def mixup(x_NCHW: Tensor) -> Tensor:
    """`a x + (1 - a) x'`, with x' another picture of the batch and one `a` per picture, uniform from 1/2 to 1.

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2017, arXiv 1710.09412.
    """
    share = 0.5 + 0.5 * torch.rand(len(x_NCHW), 1, 1, 1, device=x_NCHW.device)
    return x_NCHW.lerp(x_NCHW.roll(1, 0), 1 - share.to(x_NCHW.dtype))


STEPS: dict[str, Callable[[Tensor], Tensor]] = {"flip": flip, "crop": crop, "mixup": mixup}


def augmentation(steps: str | Augment | None, labelled: bool = False) -> Augment | None:
    """A function of a batch that changes it at random.

    Args:
        steps: "flip,crop,mixup" or some of these, in your order; or a function of a batch, which draws from torch's
            random state; None for no changes.
        labelled: whether samples have labels, which mixup cannot mix.

    Raises:
        ValueError: for an unknown name, or mixup of labels; when called, for a batch that is not an N x C x H x W
            tensor.

    Example:
        >>> augmentation("flip,crop")(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 3, 16, 16])
    """
    if steps is None or callable(steps):
        return steps
    names = [name.strip() for name in steps.split(",")]
    for name in names:
        if name not in STEPS:
            raise ValueError(f"augment {steps!r}: {name!r} is not one of {', '.join(STEPS)}; or give a function")
    if labelled and "mixup" in names:
        raise ValueError(f"augment {steps!r} mixes pictures, whose labels cannot be mixed; leave out mixup")

    def change(batch: Any) -> Tensor:
        if not isinstance(batch, Tensor) or batch.dim() != 4 or not batch.is_floating_point():
            raise ValueError(
                f"augment {steps!r} is for pictures, floating tensors N x C x H x W; for other batches give a function"
            )
        for name in names:
            batch = STEPS[name](batch)
        return batch

    return change


def named(steps: str | Augment | None) -> str | None:
    """What a checkpoint records of random changes."""
    return "a function" if callable(steps) else steps
