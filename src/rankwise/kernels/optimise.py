"""Make a copy of a network for running, in the layout and with the forms of its layers that measure fastest."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..export.compare import difference, largest
from ..latency.layers import Input, device_of
from ..network.find import find
from ..network.replacing import replace
from ..running.arguments import Arguments, arguments, fresh
from ..running.copying import copied
from ..running.exclusive import own_thread
from ..running.guards import mark_for_running, unwrap
from ..running.pristine import evaluating, rows_kept
from ..running.verbs import verb
from ..surgery.unfusing import unfused_in
from ..timing.clock import in_turns, synchronised, torch_threads
from .forms import AS_IT_IS, forms_of, is_pair

LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
# Another form must be faster by this factor, so that noise decides nothing.
LEAST_GAIN = 1.05
TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-6}
HALF_TOLERANCE = 3e-2
WARMUP = 2


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The chosen form of one layer.

    Attributes:
        layer: qualified name.
        form: "as it is", "inputs first", "packed", "product" or "fused" (see `forms`).
        seconds: median of each form tried, by name; empty if there is only one.
    """

    layer: str
    form: str
    seconds: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """What `optimised` chose, and the gain.

    Attributes:
        layout: of pictures, "contiguous" or "channels last"; "as it is" if nothing was faster.
        choices: of the layers, in the order of the forward.
        before, after: median seconds of one forward of the network and of the copy, from the same rounds.
        difference: `max |copy - network| / max |network|` over the outputs for the example.
    """

    layout: str
    choices: tuple[Choice, ...]
    before: float
    after: float
    difference: float

    def __str__(self) -> str:
        forms = [choice.form for choice in self.choices]
        counted = ", ".join(f"{forms.count(form)} {form}" for form in dict.fromkeys(forms))
        speed = f"{1e3 * self.before:.3f} -> {1e3 * self.after:.3f} ms"
        return f"{self.layout}; layers: {counted or 'none'}; {speed} ({self.before / self.after:.2f} times as fast)"


@verb
def optimised(
    model: nn.Module, example: Any, *, threads: int = 1, rounds: int = 15, tolerance: float | None = None
) -> tuple[nn.Module, RunReport]:
    """A copy of a network for running on its device, in the layout and forms that measure fastest.

    The forms of each layer (see `forms`) are timed in turns, on inputs of the sizes that the example gives it; so are
    the networks in all layouts, and the network itself. If nothing is faster, the copy is the network as it is.

    The copy is for inference on this device, with this dtype and inputs of about this size. It cannot be saved,
    exported, factorised or trained: keep the network itself.

    Args:
        model: dense or compressed, on the device where it will run; not changed.
        example: the input, as for `find`, with the number of samples of later calls.
        threads: of the CPU, while measuring.
        rounds: measured rounds.
        tolerance: largest `max |copy - network| / max |network|` over the outputs; by default 1e-3 in float32, 1e-6 in
            float64, 3e-2 in half precision.

    Returns:
        The copy in evaluation mode, and what was chosen.

    Raises:
        ValueError: if an argument is out of range, the model rejects the example, or outputs differ by more than the
            tolerance.

    Example:
        >>> fast, report = optimised(small, torch.randn(1, 3, 224, 224))  # doctest: +SKIP
        >>> fast(images)  # doctest: +SKIP
    """
    for name, value in (("threads", threads), ("rounds", rounds)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    model = unwrap(model)
    layers = _layers(model, example)
    with torch.no_grad(), evaluating(model), rows_kept(model), torch_threads(threads):
        given = arguments(model, example)
        tried = {AS_IT_IS: (copied(model), tuple(_kept(name) for name in layers))}
        pictures = any(isinstance(module, nn.Conv2d) for module in model.modules())
        for layout in list(LAYOUTS)[: 2 if pictures else 1]:
            tried[layout] = _variant(model, layout, layers, given, rounds)
        seconds = _medians({name: module for name, (module, _) in tried.items()}, given, rounds)
        best = _fastest(seconds)
        fast, choices = tried[best]
        apart = _apart(*(_output(network, fresh(given)) for network in (model, fast)))
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    allowed = TOLERANCES.get(dtype, HALF_TOLERANCE) if tolerance is None else tolerance
    if not apart <= allowed:
        raise ValueError(
            f"the copy of {type(model).__name__} for running is off by {apart:.2g} relative to the network, tolerance "
            f"is {allowed:g}; run the network itself, or accept it with a larger tolerance"
        )
    mark_for_running(fast.eval().requires_grad_(False))
    return fast, RunReport(
        layout=best, choices=choices, before=seconds[AS_IT_IS], after=seconds[best], difference=apart
    )


def _layers(model: nn.Module, example: Any) -> list[str]:
    """Names of modules that may get another form: pairs of linear layers on a GPU, single layers on the CPU."""
    sites = find(model, example)
    own = [name for name, site in sites.items() if site.dense_because is None and not site.aliases]
    # A forward that reads the weight of a chain to have it called needs the chain itself.
    read = {f"{host}.{layer}".lstrip(".") for host, layers in unfused_in(model).items() for layer in layers}
    names = []
    for name in own:
        chain = name.rpartition(".")[0]
        pair = bool(chain) and chain not in read and is_pair(model.get_submodule(chain))
        names.append(chain if pair and device_of(model).type == "cuda" else name)
    return [name for name in dict.fromkeys(names) if name]


def _variant(
    model: nn.Module, layout: str, names: list[str], given: Arguments, rounds: int
) -> tuple[nn.Module, tuple[Choice, ...]]:
    """A copy in a layout, with the fastest form of each layer in that layout."""
    result = copied(model)
    for tensor in (*result.parameters(), *result.buffers()):
        if tensor.dim() == 4:  # pictures only: volumes have another layout
            tensor.data = tensor.contiguous(memory_format=LAYOUTS[layout])
    inputs: dict[str, Input] = {}
    hooks = [
        result.get_submodule(name).register_forward_pre_hook(own_thread(_recorder(name, inputs)), with_kwargs=True)
        for name in names
    ]
    _output(result, given)
    for hook in hooks:
        hook.remove()
    choices = []
    measured: dict[Any, tuple[str, dict[str, float]]] = {}  # layers that are alike are measured once
    for name in names:
        layer = result.get_submodule(name)
        forms = forms_of(layer, inputs[name]) if name in inputs else {}
        if not forms:
            choices.append(_kept(name))
            continue
        alike = (repr(layer), inputs[name])
        if alike not in measured:
            measured[alike] = _measured(layer, forms, inputs[name], rounds)
        form, seconds = measured[alike]
        if form != AS_IT_IS:
            replace(result, [name], forms[form]())
        choices.append(Choice(layer=name, form=form, seconds=seconds))
    return result, tuple(choices)


def _recorder(name: str, inputs: dict[str, Input]) -> Callable[..., None]:
    def record(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs[name] = Input.of(args[0] if args else next(iter(kwargs.values())))

    return record


def _measured(
    layer: nn.Module, forms: dict[str, Callable[[], nn.Module]], given: Input, rounds: int
) -> tuple[str, dict[str, float]]:
    """The fastest form, and the seconds of all forms."""
    modules = {AS_IT_IS: layer, **{name: make() for name, make in forms.items()}}
    seconds = _medians(modules, ((given.tensor(layer).to(device_of(layer)),), {}), rounds)
    return _fastest(seconds), seconds


def _medians(modules: dict[str, nn.Module], given: Arguments, rounds: int) -> dict[str, float]:
    """Seconds of one forward of each, on the device of the first."""
    args, kwargs = given
    device = device_of(next(iter(modules.values())))

    def run(module: nn.Module) -> Callable[[], object]:
        return synchronised(lambda: module(*args, **kwargs), device)

    runs = {name: run(module) for name, module in modules.items()}
    return {name: statistics.median(values) for name, values in in_turns(runs, rounds, WARMUP).items()}


def _fastest(seconds: dict[str, float]) -> str:
    """The fastest, if it is clearly faster than the layer as it is."""
    best = min(seconds, key=seconds.__getitem__)
    return best if seconds[AS_IT_IS] >= LEAST_GAIN * seconds[best] else AS_IT_IS


def _kept(name: str) -> Choice:
    return Choice(layer=name, form=AS_IT_IS, seconds={})


def _output(network: nn.Module, given: Arguments) -> Any:
    args, kwargs = given
    return network(*args, **kwargs)


def _apart(exact: Any, other: Any) -> float:
    """The largest difference between two networks' outputs."""
    pairs = zip(pytree.tree_leaves(exact), pytree.tree_leaves(other), strict=True)
    return largest(difference(b, a) for a, b in pairs if isinstance(a, Tensor))
