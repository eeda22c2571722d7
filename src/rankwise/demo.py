"""The network of the demo, its data (scikit-learn's digits), and its training in half a minute."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KEEP = 1 / 3
CALIBRATION = 300
EPOCHS = 8
BATCH = 32
# For a single digit, calling the layers takes longer than the layers.
LATENCY_BATCH = 64


def build() -> nn.Module:
    """The network of the demo, untrained: three 3x3 convolutions on 8x8 pictures, and a classifier."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *block(1, 32),
        *block(32, 64),
        nn.MaxPool2d(2),
        *block(64, 64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def digits(seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The 1797 digits as (images, labels) for training and for the test: a fixed three quarters and the rest.

    Raises:
        ImportError: without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the demo needs scikit-learn: pip install 'rankwise[demo]'") from error
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float()[:, None] / 16
    labels = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    train, test = order[: 3 * len(order) // 4], order[3 * len(order) // 4 :]
    return (images[train], labels[train]), (images[test], labels[test])


def train(images: Tensor, labels: Tensor, seed: int) -> nn.Module:
    """A trained network, the same one for the same seed."""
    threads = torch.get_num_threads()
    # Such a small network gains nothing from more threads, and with one, sums are the same on every machine.
    torch.set_num_threads(1)
    try:
        return _train(images, labels, seed)
    finally:
        torch.set_num_threads(threads)


def _train(images: Tensor, labels: Tensor, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = build().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    steps = EPOCHS * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(images)).split(BATCH):
            loss = F.cross_entropy(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()
