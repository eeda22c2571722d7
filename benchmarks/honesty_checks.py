"""Checks that every compressed network must pass; each returns what is wrong, in words.

Letters: B samples, T outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

import rankwise as rw
from benchmarks.honesty_case import Case
from rankwise.evaluate import size
from rankwise.running.calling import call, first_samples

# Squared errors below this (3 % of an output) are too small for a ratio of them to matter.
SMALL = 1e-3
# Relative errors of outputs below this, too.
ROUNDING = 1e-3
# So far may the sequential way be behind the one-shot way, and an error be from its prediction.
BEHIND, FACTOR = 1.1, 2.0


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything a user can see of a network: tensors, attributes, hooks, flags, and the state of random numbers."""
    seen: dict[str, Any] = {"random state": torch.get_rng_state()}
    for key, value in model.state_dict().items():
        seen[f"tensor {key}"] = value.clone() if isinstance(value, Tensor) else value
    for name, module in model.named_modules():
        seen[f"class of {name!r}"] = type(module)
        for key, value in vars(module).items():
            if "hooks" in key:
                value = tuple(value) if hasattr(value, "__iter__") else value
            if key in ("_parameters", "_buffers", "_modules"):
                value = tuple((part, id(held)) for part, held in value.items())
            seen[f"{name}.{key}"] = value.detach().clone() if isinstance(value, Tensor) else value
    for name, parameter in model.named_parameters():
        seen[f"flag of {name}"] = parameter.requires_grad, parameter.grad is None
    return seen


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What has changed in a network."""
    differing = [key for key in before.keys() | after.keys() if not _same(before.get(key), after.get(key))]
    return [f"changed the user's network: {key}" for key in sorted(differing)]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    return a is b or (type(a) is type(b) and bool(a == b))


def flops(model: nn.Module, batch: Any) -> int | None:
    """Floating-point operations that PyTorch's own counter sees; None if its hooks break the forward."""
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            call(model, batch)
    except ValueError:
        return None
    return int(counter.get_total_flops())


def in_memory(model: nn.Module) -> int:
    """Number of parameters, shared memory counted once."""
    return sum({parameter.data_ptr(): parameter.numel() for parameter in model.parameters()}.values())


def outputs(model: nn.Module, batches: list[Any]) -> list[Tensor]:
    """All floating-point outputs of a network, with the same random numbers in each batch of each network."""
    result = []
    for number, batch in enumerate(batches):
        torch.manual_seed(number)
        with torch.no_grad():
            leaves = pytree.tree_leaves(_plain(call(model, batch)))
        result += [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return result


def _plain(value: Any) -> Any:
    """An output object of transformers as a tuple, without its cache for the next word."""
    if hasattr(value, "to_tuple"):
        return [_plain(part) for key, part in value.items() if "past_key_values" not in key]
    return value


def relative_error(found: list[Tensor], wanted: list[Tensor]) -> float | None:
    """`sqrt(sum (y - z)^2 / sum y^2)`; None if outputs have other sizes, such as detected boxes."""
    if [tensor.shape for tensor in found] != [tensor.shape for tensor in wanted]:
        return None
    missed = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(found, wanted, strict=True))
    total = sum(float(b.double().square().sum()) for b in wanted)
    return math.sqrt(missed / total) if total else 0.0


class _Error:
    """The relative squared error of a layer's output about its mean, call after call."""

    def __init__(self) -> None:
        self.missed, self.count, self.sum_T, self.squares = 0.0, 0, torch.zeros(()), 0.0

    def add(self, y_BT: Tensor, z_BT: Tensor) -> None:
        self.missed += float((y_BT - z_BT).square().sum())
        self.sum_T = self.sum_T + y_BT.sum(0)
        self.count, self.squares = self.count + len(y_BT), self.squares + float(y_BT.square().sum())

    def value(self, centred: bool) -> float:
        total = self.squares - (float(self.sum_T.square().sum()) / self.count if centred else 0.0)
        return self.missed / total if total > 0 else 0.0


def layer_errors(dense: nn.Module, small: nn.Module, report: rw.CompressReport, batches: list[Any]) -> dict[str, float]:
    """The error of each chain on the dense network's own inputs, as a one-shot plan predicts it for data of its kind.

    Weights that are looked up are left out: their error is one of two uses, or of frequencies.
    """
    errors: dict[str, _Error] = {}
    handles = []

    def watch(name: str, layer: nn.Module, chain: nn.Module, dims: int) -> Any:
        def seen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            if not x.numel():
                return
            y, z = (
                part.double().movedim(-dims - 1, -1).reshape(-1, part.shape[-dims - 1])
                for part in (layer_of(x), chain_of(x))
            )
            errors.setdefault(name, _Error()).add(y, z)

        def layer_of(x: Tensor) -> Tensor:
            return type(layer).forward(layer, x)

        def chain_of(x: Tensor) -> Tensor:
            return type(chain).forward(chain, x)

        return seen

    for row in report.plan.factorised:
        site = report.sites[row.site]
        if site.looks_up:
            continue
        for name in dict.fromkeys((row.site, *site.aliases)):
            layer, chain = dense.get_submodule(name), small.get_submodule(name)
            dims = len(site.kernel_size)
            handles.append(layer.register_forward_hook(watch(row.site, layer, chain, dims), with_kwargs=True))
    try:
        outputs(dense, batches)
    finally:
        for handle in handles:
            handle.remove()
    return {name: error.value(report.sites[name].chain_bias(report.plan.metric)) for name, error in errors.items()}


def by_rows(dense: nn.Module, small: nn.Module, report: rw.CompressReport, batch: Any) -> list[str]:
    """Chains whose products differ from the plan's for the rows they received; only linear layers."""
    rows: dict[str, list[int]] = {}
    for network, number in ((dense, 0), (small, 1)):
        for row in report.plan.factorised:
            seen = rows.setdefault(row.site, [0, 0])

            def count(module: nn.Module, args: Any, seen: list[int] = seen, number: int = number) -> None:
                seen[number] += args[0].shape[:-1].numel()

            handle = network.get_submodule(row.site).register_forward_pre_hook(count)
            with torch.no_grad():
                call(network, batch)
            handle.remove()
    with FlopCounterMode(display=False, depth=99) as counter, torch.no_grad():
        call(small, batch)
    found = {name.partition(".")[2]: sum(flops.values()) // 2 for name, flops in counter.get_flop_counts().items()}
    return [
        f"{row.site!r} runs {found.get(row.site, 0):,} MACs for {rows[row.site][1]:,} rows, not {wanted:,}"
        for row in report.plan.factorised
        if found.get(row.site, 0) != (wanted := row.macs * rows[row.site][1] // max(rows[row.site][0], 1))
    ]


@dataclass
class Verdict:
    """The result of one network at one budget, one-shot or sequential.

    Attributes:
        figures: figures for the table.
        faults: what is wrong, in words; empty for a row that is right.
    """

    figures: dict[str, Any]
    faults: list[str] = field(default_factory=list)


def judge(
    case: Case, model: nn.Module, data: list[Any], held_out: list[Any], settings: dict[str, Any], keep: Any
) -> Iterator[Verdict]:
    """Both ways at one budget, one-shot first."""
    errors: dict[str, float | None] = {}
    wanted = outputs(model, held_out)
    example = data[0] if case.whole else first_samples(data[0])
    for method in ("one-shot", "sequential"):
        unit, share = next(iter(keep.items()))
        verdict = Verdict({"network": case.name, "kind": case.kind, "budget": f"{unit} {share:g}", "method": method})
        before = snapshot(model)
        try:
            small, report = rw.compress(model, data, keep=keep, method=method, **settings, **case.options)
        except ValueError as error:
            words = case.refused or ()
            verdict.figures["verdict"] = f"refused: {error}"
            if case.refused is None or not all(word in str(error) for word in words):
                verdict.faults.append(f"refused, not for a reason that was expected: {error}")
            verdict.faults += changed(before, snapshot(model))
        except Exception as error:  # whatever else comes out is a fault of ours, and the table goes on
            verdict.faults.append(f"raised {type(error).__name__}: {error}")
            verdict.faults += changed(before, snapshot(model))
        else:
            verdict.faults += changed(before, snapshot(model))  # before anything else runs it
            _measure(verdict, model, small, report, data, held_out, example, wanted, errors, keep, case.routed)
        yield verdict


def _measure(
    verdict: Verdict,
    model: nn.Module,
    small: nn.Module,
    report: rw.CompressReport,
    data: list[Any],
    held_out: list[Any],
    example: Any,
    wanted: list[Tensor],
    errors: dict[str, float | None],
    keep: Any,
    routed: bool,
) -> None:
    plan, method, faults = report.plan, verdict.figures["method"], verdict.faults
    random = torch.get_rng_state()
    model = rw.unfused(model, example)  # sites have the names of its layers
    counted = size(small, example)
    before, after = flops(model, example), flops(small, example)
    found = outputs(small, held_out)
    errors[method] = error = relative_error(found, wanted)
    verdict.figures |= {
        "sites": len(plan.factorised),
        "macs_ratio": plan.planned["macs"] / plan.dense["macs"],
        "error": error,
    }
    for unit, count in (("macs", counted.macs), ("params", counted.params), ("params", in_memory(small))):
        if count != plan.planned[unit] and not (routed and unit == "macs"):
            faults.append(f"{count:,} {unit} were counted, {plan.planned[unit]:,} planned")
    if routed:
        faults += by_rows(model, small, report, example)
    for unit, share in keep.items():
        if plan.planned[unit] > share * plan.dense[unit]:
            faults.append(f"the budget of {unit} is not met")
    saved = plan.dense["macs"] - plan.planned["macs"]
    if before is not None and after is not None and before - after != 2 * saved and not routed:
        faults.append(f"PyTorch counts {(before - after) // 2:,} MACs fewer, the plan {saved:,.0f}")
    if not all(bool(tensor.isfinite().all()) for tensor in found):
        faults.append("outputs are not finite")
    if method == "one-shot":
        real, rounding = layer_errors(model, small, report, held_out), SMALL + _precision(model)
        ratios = {
            row.site: (real[row.site] + rounding) / (row.error + rounding)
            for row in plan.factorised
            if row.site in real and row.error is not None
        }
        if ratios:
            worst = max(ratios, key=lambda name: abs(math.log(ratios[name])))
            verdict.figures["predicted"] = ratios[worst]
            if not 1 / FACTOR <= ratios[worst] <= FACTOR:
                faults.append(f"the error of {worst!r} is {ratios[worst]:.3g} times the predicted one")
    one = errors.get("one-shot")
    if method == "sequential" and error is not None and one is not None and error > BEHIND * one + ROUNDING:
        faults.append(f"sequential error {error:.3g}, one-shot {one:.3g}")
    torch.set_rng_state(random)


def _precision(model: nn.Module) -> float:
    """Squared rounding error of the network's numbers."""
    return max((torch.finfo(p.dtype).eps ** 2 for p in model.parameters() if p.is_floating_point()), default=0.0)
