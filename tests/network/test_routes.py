"""Which layers get rows that the network itself picks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.nets import make
from torch import Tensor, nn

import rankwise as rw


class Picking(nn.Module):
    """A layer, a score of its tokens, and a layer after something is done with both."""

    def __init__(self, between: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.score, self.last = nn.Linear(8, 8), nn.Linear(8, 1), nn.Linear(8, 4)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)  # B x N x 8
        return self.last(self.between(h, self.score(h).squeeze(-1)))


def top(s: Tensor) -> Tensor:
    return s.topk(3, dim=1).indices


def mask_of(s: Tensor) -> Tensor:
    return torch.zeros_like(s, dtype=torch.bool).scatter_(1, top(s), True)


MOVED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gather": lambda h, s: h.gather(1, top(s)[..., None].expand(-1, -1, 8)),
    "take_along_dim": lambda h, s: torch.take_along_dim(h, top(s)[..., None], 1),
    "beside a class token": lambda h, s: torch.cat([h[:, :1], h[torch.arange(len(h))[:, None], top(s)]], 1),
    "a list of numbers": lambda h, s: torch.stack([a[i.tolist()] for a, i in zip(h, top(s), strict=True)]),
    "a list of decisions": lambda h, s: h[:, [n for n in range(6) if bool(s[0, n] > 0)] or [0]],
    "a mask": lambda h, s: h[mask_of(s)],
    "flat indices": lambda h, s: h.flatten(0, 1).index_select(0, top(s).flatten()),
    "repeats": lambda h, s: torch.repeat_interleave(h, (s.sum(1) > 0).long() + 1, 0),
    "a matrix of decisions": lambda h, s: F.one_hot(s.argmax(1), 6).float()[:, None] @ h,
    "an order": lambda h, s: h[:, s[0].argsort()],
    "the input by an order": lambda h, s: h * 0 + h[:, s[0].argsort()],
    "in place, through a view": lambda h, s: h.clone().copy_(h[:, s[0].argsort()]).view(-1, 8),
}


@pytest.mark.parametrize("how", MOVED)
def test_rows_that_the_network_picks(how: str) -> None:
    sites = rw.find(make(lambda: Picking(MOVED[how])), torch.randn(2, 6, 8))
    assert sites["first"].unpaired is None
    assert sites["score"].unpaired is None
    assert "in Picking (the model itself)" in (sites["last"].unpaired or "")


def there_and_back(h: Tensor, s: Tensor) -> Tensor:
    order = s[0].argsort()
    return torch.tanh(h[:, order])[:, order.argsort()]


def there_and_scattered_back(h: Tensor, s: Tensor) -> Tensor:
    order = s[0].sort().indices
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order))
    return torch.tanh(h[0][order // 1])[inverse]


PAIRED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a mask that multiplies": lambda h, s: h * mask_of(s)[..., None],
    "a mask that fills": lambda h, s: h.masked_fill((s > 0)[..., None], 0.0),
    "where": lambda h, s: torch.where((s > 0)[..., None], h, -h),
    "attention": lambda h, s: (h @ h.mT).softmax(-1) @ h,
    "the largest values": lambda h, s: h.topk(2, dim=1).values,
    "pooling": lambda h, s: F.max_pool1d(h.mT, 2).mT,
    "an even order": lambda h, s: h[:, torch.arange(6).flip(0)],
    "random order": lambda h, s: h[:, torch.rand(6).argsort()],
    "features of a row": lambda h, s: h[..., s.flatten()[:8].argsort()],
    "rows put back": lambda h, s: torch.zeros_like(h[0]).index_add(0, top(s)[0], h[0][top(s)[0]]),
    "rows put back by a mask": lambda h, s: h.clone().masked_scatter_(mask_of(s)[..., None], h[mask_of(s)]),
    "an order and its inverse": there_and_back,
    "an order and its scattered inverse": there_and_scattered_back,
    "checks of values": lambda h, s: h if not bool(h.isnan().any()) else -h,
}


@pytest.mark.parametrize("how", PAIRED)
def test_rows_that_stay_in_place(how: str) -> None:
    sites = rw.find(make(lambda: Picking(PAIRED[how])), torch.randn(2, 6, 8))
    assert {name: site.unpaired for name, site in sites.items()} == dict.fromkeys(("first", "score", "last"))


def test_indices_that_come_with_the_batch() -> None:
    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor, where: Tensor) -> Tensor:
            return self.last(self.first(x)[where])

    sites = rw.find(make(Given), (torch.randn(5, 8), torch.tensor([3, 1])))
    assert all(site.unpaired is None for site in sites.values())


def test_the_reason_survives_a_file_and_is_told_in_the_plan() -> None:
    model = make(lambda: Picking(MOVED["gather"]))
    sites = rw.find(model, torch.randn(2, 6, 8))
    assert rw.Sites.from_dict(sites.to_dict())["last"].unpaired == sites["last"].unpaired
    plan = rw.choose(model, sites, keep={"params": 0.9}, metric="weight", pin={"last": "svd:2"})
    assert "gather in Picking" in plan["last"].why
    assert "gather" not in plan["first"].why
