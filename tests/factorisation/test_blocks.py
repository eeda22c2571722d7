"""Block by block: the same factors as from the start, hidden units among them, and which networks can run so."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from support.nets import chains, make, same_bits, unchanged
from support.stacks import Block, Shared, Skips, Stack, stack_of, words
from torch import Tensor, nn

import rankwise as rw
from rankwise.factorisation.blocks import stacks
from rankwise.layers.kinds import Role

pytestmark = pytest.mark.usefixtures("one_thread")


def planned(model: nn.Module, batches: Any, keep: float = 0.5) -> tuple[rw.Statistics, rw.Plan]:
    stats = rw.collect(model, batches, joint=True)
    return stats, rw.choose(model, stats, keep={"linear": keep})


def assert_same(one: nn.Module, other: nn.Module) -> None:
    theirs = other.state_dict()
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-5, msg=name)


def logits_error(model: nn.Module, small: nn.Module, batches: list[dict[str, Tensor]]) -> float:
    with torch.no_grad():
        pairs = [(model(**batch), small(**batch), batch["attention_mask"].bool()) for batch in batches]
    return sum(float((a - b)[real].square().sum()) for a, b, real in pairs)


@pytest.mark.parametrize("kind", [Stack, Shared])
def test_the_same_factors_as_from_the_start(kind: type[nn.Module], caplog: pytest.LogCaptureFixture) -> None:
    model, batches = stack_of(kind), words()
    stats, plan = planned(model, batches)
    assert any(stats.sites[row.site].role is Role.HIDDEN for row in plan.factorised)
    with unchanged(model):
        blocks = rw.factorise(model, plan, stats, data=batches, engine="blocks")
        hooks = rw.factorise(model, plan, stats, data=batches, engine="hooks")
    assert_same(blocks, hooks)
    with caplog.at_level(logging.WARNING, logger="rankwise"):
        assert_same(rw.factorise(model, plan, stats, data=batches), blocks)  # no graph: its forward branches
    assert not caplog.records
    assert set(chains(blocks)) == {name for row in plan.factorised for name in stats.sites[row.site].names}


def test_a_graph_gives_the_same_where_there_is_one() -> None:
    class Traceable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 12)
            self.ups, self.downs = (nn.ModuleList(nn.Linear(*sizes) for _ in "ab") for sizes in ((12, 32), (32, 12)))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for up, down in zip(self.ups, self.downs, strict=True):
                x = x + down(torch.relu(up(x)))
            return x

    model, data = make(Traceable), [torch.randn(64, 6, generator=torch.Generator().manual_seed(n)) for n in range(4)]
    stats, plan = planned(model, data)
    assert sum(stats.sites[row.site].role is Role.HIDDEN for row in plan.factorised) == 2
    graph, hooks = (rw.factorise(model, plan, stats, data=data, engine=engine) for engine in ("graph", "hooks"))
    assert_same(graph, hooks)


def test_blocks_that_do_not_follow_each_other(caplog: pytest.LogCaptureFixture) -> None:
    model, batches = stack_of(Skips), words()
    stats, plan = planned(model, batches)
    with unchanged(model), pytest.raises(ValueError, match=r"block by block.*'blocks\.2' reads what neither.*hooks"):
        rw.factorise(model, plan, stats, data=batches, engine="blocks")
    with caplog.at_level(logging.WARNING, logger="rankwise"):
        auto = rw.factorise(model, plan, stats, data=batches)
    assert "runs it from the start" in caplog.text
    assert same_bits(auto, rw.factorise(model, plan, stats, data=batches, engine="hooks"))


def test_a_block_that_remembers_its_calls_is_refused() -> None:
    class Remembers(Stack):
        def run(self, x: Tensor, mask: Tensor | None) -> Tensor:
            cache: list[Tensor] = []
            for block in self.blocks:
                block.register_forward_pre_hook(lambda module, args: (args[0] + sum(cache), *args[1:]))
                x = block(x, mask)
                cache.append(x)
                block._forward_pre_hooks.popitem()
            return x

    model, batches = stack_of(Remembers), words()
    stats, plan = planned(model, batches)
    with pytest.raises(ValueError, match=r"they give something else when they run again\); use engine='hooks'"):
        rw.factorise(model, plan, stats, data=batches, engine="blocks")


def test_what_blocks_share_is_as_it_was_before_them() -> None:
    class Cached(Stack):
        """Every block adds to a cache that all of them get, as keys and values are kept."""

        class Seen:
            def __init__(self) -> None:
                self.by_block: dict[int, list[Tensor]] = {}

        class Caching(nn.Module):
            def __init__(self, place: int) -> None:
                super().__init__()
                self.block, self.place = Block(), place

            def forward(self, x: Tensor, mask: Tensor | None, cache: Cached.Seen) -> Tensor:
                seen = cache.by_block.setdefault(self.place, [])
                seen.append(x)
                return self.block(sum(seen), mask)  # type: ignore[no-any-return]

        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(self.Caching(place) for place in range(3))

        def run(self, x: Tensor, mask: Tensor | None) -> Tensor:
            cache = self.Seen()
            for block in self.blocks:
                x = block(x, mask, cache=cache)
            return x

    model, batches = stack_of(Cached), words()
    stats, plan = planned(model, batches)
    assert_same(*(rw.factorise(model, plan, stats, data=batches, engine=engine) for engine in ("blocks", "hooks")))


def test_it_resumes() -> None:
    model, batches = stack_of(), words()
    stats, plan = planned(model, batches)
    done: dict[str, Any] = {}
    whole = rw.factorise(model, plan, stats, data=batches, engine="blocks", done=done)
    for count in (3, len(done)):
        rest = dict(list(done.items())[:count])
        assert same_bits(rw.factorise(model, plan, stats, data=batches, engine="blocks", done=rest), whole)
        assert rest.keys() == done.keys()


def test_it_is_nearer_than_one_shot_where_rows_are_many() -> None:
    model, batches, fresh = stack_of(), words(6, samples=32), words(1, samples=32, seed=9)
    stats, plan = planned(model, batches, 0.4)
    one_shot, sequential = rw.factorise(model, plan, stats), rw.factorise(model, plan, stats, data=batches)
    assert logits_error(model, sequential, fresh) < logits_error(model, one_shot, fresh)


def test_padding_does_not_count() -> None:
    model, batches = stack_of(), words()
    other = [{**batch, "input_ids": batch["input_ids"] * batch["attention_mask"] + 7 * (1 - batch["attention_mask"])}
             for batch in batches]  # fmt: skip
    stats, plan = planned(model, batches)
    assert_same(*(rw.factorise(model, plan, stats, data=data, engine="blocks") for data in (batches, other)))


def test_units_that_repeat_others_leave_and_nothing_is_lost() -> None:
    model, batches = stack_of(), words(2, samples=48)
    for block in model.blocks:
        with torch.no_grad():  # every second unit is a copy of the one before
            block.up.weight[1::2], block.up.bias[1::2] = block.up.weight[::2], block.up.bias[::2]
    sites = rw.find(model, batches[0], joint=True)
    rows = {name: ("nystrom", (16,)) for name, site in sites.items() if site.role is Role.HIDDEN}
    stats = rw.collect(model, batches, joint=True)
    plan = rw.choose(
        model, stats, keep={"linear": 1.0}, pin=dict.fromkeys(rows, "nystrom:16"), ignore="blocks.*.[qkvo]"
    )
    small = rw.factorise(model, plan, stats, data=batches, engine="blocks")
    assert {row.site for row in plan.factorised} >= rows.keys()
    with torch.no_grad():
        scale = sum(float(model(**batch)[batch["attention_mask"].bool()].square().sum()) for batch in batches)
    assert logits_error(model, small, batches) < 1e-4 * scale


def test_stacks() -> None:
    model = stack_of()
    places = [*(f"blocks.{n}.{name}" for n in range(3) for name in ("q", "down")), "head"]
    assert stacks(model, places) == [(places[:-1], ["blocks.0", "blocks.1", "blocks.2"]), (["head"], [])]
    assert stacks(model, ["blocks.1.q"]) == [(["blocks.1.q"], [])]  # one block is no stack
    assert stacks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), ["0", "1"]) == [(["0", "1"], [])]
