"""Embeddings and heads of language models stay dense unless a pattern names them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.nets import make
from torch import Tensor, nn

import rankwise as rw

EMBEDDING = "embedding: stays dense unless included by name"
HEAD = "head of a language model: stays dense unless included by name"
BOTH = "embedding and head of a language model: stay dense unless included by name"


class Words(nn.Module):
    """Words, their places and kinds, a hidden layer and a head of any size."""

    def __init__(self, outputs: int = 40, tied: bool = False, pooled: bool = False, places: int = 12) -> None:
        super().__init__()
        self.words, self.places, self.kinds = nn.Embedding(40, 16), nn.Embedding(places, 16), nn.Embedding(2, 16)
        self.up, self.down, self.head = nn.Linear(16, 40), nn.Linear(40, 16), nn.Linear(16, outputs)
        self.pooled = pooled
        if tied:
            self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.kinds(torch.zeros_like(tokens))
        x = x + self.places(torch.arange(tokens.shape[1]).expand_as(tokens))
        x = x + self.down(torch.relu(self.up(x)))
        return self.head(x.mean(1) if self.pooled else x)


TOKENS = torch.randint(40, (3, 8), generator=torch.Generator().manual_seed(0))


def reasons(model: nn.Module, x: Tensor = TOKENS) -> dict[str, str | None]:
    return {name: site.stays_dense for name, site in rw.find(model, x).items() if site.stays_dense}


def test_embeddings_and_heads_are_known_by_structure() -> None:
    tables = dict.fromkeys(("words", "places", "kinds"), EMBEDDING)
    assert reasons(Words()) == {**tables, "head": HEAD}
    assert reasons(Words(pooled=True)) == {**tables, "head": HEAD}  # the next word alone
    assert reasons(Words(places=64)) == {**tables, "head": HEAD}  # more places than words
    assert reasons(Words(tied=True)) == {**tables, "words": BOTH}
    assert reasons(Words(outputs=2, pooled=True)) == tables  # two classes are not the two kinds
    assert reasons(Words(outputs=7)) == tables


def test_a_classifier_is_no_head() -> None:
    assert reasons(nn.Sequential(nn.Linear(16, 1000), nn.ReLU(), nn.Linear(1000, 1000)), torch.zeros(1, 16)) == {}


@pytest.mark.parametrize(
    ("include", "free"),
    [
        ("*", {"up", "down"}),
        (["*"], {"up", "down"}),
        (["*", "head"], {"up", "down", "head"}),
        (["*", "w*", "head"], {"up", "down", "head", "words"}),
        ("re:.*", {"up", "down", "head", "words", "places", "kinds"}),
        ("head", {"head"}),
    ],
)
@pytest.mark.usefixtures("one_thread")
def test_a_pattern_that_names_them_includes_them(include: Any, free: set[str]) -> None:
    sites = rw.find(Words(), TOKENS)
    assert {site.name for site in sites.included(include)} == free
    plan = rw.choose(make(Words), sites, rule="uniform:ratio=0.3", metric="weight", include=include, round_to=1)
    dense = {row.site: row.why for row in plan.rows if row.site not in free}
    if include == "head":
        assert dense["up"] == "not included"
        assert dense["words"] == "not included"
    else:
        assert all(why == sites[name].unless_named for name, why in dense.items())
    assert {row.site for row in plan.factorised} <= free


def test_ignored_is_the_reason_where_both_hold() -> None:
    plan = rw.choose(make(Words), rw.find(Words(), TOKENS), keep={"params": 0.99}, metric="weight", ignore="head")
    assert plan["head"].why == "ignored"
    assert plan["words"].why == EMBEDDING


def test_a_pin_names_one_too() -> None:
    pin = {"words": ("svd", (3,))}
    plan = rw.choose(make(Words), rw.find(Words(), TOKENS), keep={"params": 0.9}, metric="weight", pin=pin)
    assert plan["words"].ranks == (3,)


def test_a_budget_that_only_they_could_meet_cannot_be_met() -> None:
    model, sites = make(Words), rw.find(Words(), TOKENS)
    with pytest.raises(ValueError, match="cannot be met"):
        rw.choose(model, sites, keep={"params": 0.4}, metric="weight")
    plan = rw.choose(model, sites, keep={"params": 0.4}, metric="weight", include=["*", "words", "head"])
    assert plan.planned["params"] <= 0.4 * plan.dense["params"]


def test_what_sites_say_of_themselves() -> None:
    sites = rw.find(Words(), TOKENS)
    assert repr(sites).startswith("Sites(2 of 6 to factorise")
    assert rw.Sites.from_dict(sites.to_dict())["words"].unless_named == EMBEDDING
