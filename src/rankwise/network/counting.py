"""Count one forward pass: which layers run, on what sizes, and which products use which parameter.

Layers of the usual kinds are counted by hooks, from shapes alone. Everything else is counted operator by operator. A
product with a parameter, or with a tensor computed from parameters alone, belongs to that parameter. A product of two
activations is not counted. Every operator that is left out is listed.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import count
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from ..layers.kinds import HF_HOME, is_transposed, site_kind, spatial_dims
from ..running.calling import tensor_leaves
from ..running.exclusive import hooked, own_thread
from ..running.guards import in_words
from ..running.state import interval, storage_of, writes


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a layer in one forward of the example input.

    Attributes:
        rows: products with the weight: samples x output positions (transposed convolution: x input positions; Linear:
            product of the leading dimensions).
        in_positions: samples x spatial input positions (Linear: equal to `rows`).
        in_size, out_size: spatial sizes, `()` for Linear.
    """

    rows: int
    in_positions: int
    in_size: tuple[int, ...]
    out_size: tuple[int, ...]

    def positions(self, done: Collection[int], sizes: Mapping[int, int] | None = None) -> int:
        """Positions where spatial dimensions have their output size if `done`, that of `sizes`, or their input size."""
        changed = {**{d: self.out_size[d] for d in done}, **(sizes or {})}
        before = prod(self.in_size[d] for d in changed)
        return self.in_positions // before * prod(changed.values()) if before else 0


class Calls:
    """Context that counts by module name: its calls, and the numbers in the tensors that it was given."""

    def __init__(self, model: nn.Module) -> None:
        self.count: Counter[str] = Counter()
        self.numbers: Counter[str] = Counter(dict.fromkeys(dict(model.named_modules()), 0))
        self._model = model
        self._hooks = ExitStack()

    def __enter__(self) -> Calls:
        for name, module in self._model.named_modules():
            hook = own_thread(partial(self._see, name))
            self._hooks.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.close()

    def _see(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.count[name] += 1
        self.numbers[name] += sum(x.numel() for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor))


# Operator -> positions of the two factors among its arguments.
_MATMULS = {
    "mm": (0, 1),
    "bmm": (0, 1),
    "mv": (0, 1),
    "dot": (0, 1),
    "addmm": (1, 2),
    "addbmm": (1, 2),
    "baddbmm": (1, 2),
    "addmv": (1, 2),
    "_grouped_mm": (0, 1),  # mixture of experts: each row meets one expert
}
_CONVOLUTIONS = {"convolution", "_convolution", "convolution_overrideable", "cudnn_convolution"}
# Operators that create or move data and compute nothing; PyTorch marks the views among them itself.
_MOVES = re.compile(
    "_?(alias|arange|as_strided|cat|clone|constant_pad|copy|detach|embedding|empty|expand|fill|flip|full|gather|index|"
    "lift|local_scalar|masked_fill|masked_select|new_|ones|pad|permute|pixel_|repeat|roll|scalar_tensor|scatter|select|"
    "slice|stack|to_copy|tri[lu]|unsafe_|zero)"
)
_LEFT_OUT = {
    "attention": "products of activations (attention)",
    "norm": "normalisation",
    "softmax|^hard": "element-wise work",
    "pool|upsample|^(mean|sum|std|var|any|all|a?max|a?min|arg|cum|sort|topk|histc)": "pooling, sorting or a reduction",
}


def own_forward(module: nn.Module) -> bool:
    """Whether a layer overrides the forward of its library class."""
    if "forward" in module.__dict__:  # replaced on the instance
        return True
    homes = ("torch.nn.modules.", HF_HOME)
    original = next(cls for cls in type(module).__mro__ if cls.__module__.startswith(homes))
    return any(
        getattr(type(module), name, None) is not getattr(original, name, None) for name in ("forward", "_conv_forward")
    )


class Recorder(TorchDispatchMode):
    """Context that records one forward pass of a model; hooks are removed on leaving.

    Args:
        by_operators: count site layers by the operators that run in them, too, not by their hooks.

    Attributes:
        calls: layer name -> its calls, in order of the first call.
        direct: layer name -> the module that used its weight without calling it, in words.
        hosts: layer name -> the name of that module.
        sized: transposed convolutions that were called with an output size.
        read: layer name -> for each call, what identifies its input tensor.
        unusual: layer name -> the kind of tensor without ordinary rows that it was called with, in words.
        other_macs: name -> MACs of everything counted that is not a call of a site layer.
        not_counted: operator -> why it is not counted.
    """

    def __init__(self, model: nn.Module, *, by_operators: bool = False) -> None:
        super().__init__()
        self.by_operators = by_operators
        self.calls: dict[str, list[Call]] = {}
        self.read: dict[str, list[tuple[int, int]]] = {}
        self.direct: dict[str, str] = {}
        self.hosts: dict[str, str] = {}
        self.sized: set[str] = set()
        self.unusual: dict[str, str] = {}
        self.other_macs: dict[str, int] = defaultdict(int)
        self.not_counted: dict[str, str] = {}
        self._names = {id(module): name for name, module in reversed(list(model.named_modules()))}
        self._model = model
        self._running: list[nn.Module] = []
        # Tensor -> number. Keys are weak: a strong one would keep every activation of the forward alive.
        self._seen = WeakTensorKeyDictionary()
        self._number = count()
        # Running modules whose hook counts them. Operators inside them are skipped, or they would count twice.
        self._counted_by_hook = 0
        self._layers = {name: module for name, module in model.named_modules() if site_kind(module)}
        self._shapes = {name: tuple(module.weight.shape) for name, module in self._layers.items()}
        self._own = {name for name, module in self._layers.items() if own_forward(module)}
        # Storage -> (start, end, owner). One storage may hold parameters of several owners, as flattened ones do.
        self._parameters: dict[int, list[tuple[int, int, str]]] = defaultdict(list)
        # Storage -> (tensor, owner). The tensor is held, so that no other one is allocated at its address.
        self._derived: dict[int, tuple[torch.Tensor, str]] = {}
        self._map_parameters()

    def _map_parameters(self) -> None:
        # Site layers come first, embeddings last of them: a product with a tied weight belongs to the head.
        owned = [
            (name, parameter)
            for name, layer in sorted(self._layers.items(), key=lambda item: isinstance(item[1], nn.Embedding))
            for part, parameter in layer.named_parameters()
            if part == "weight" or part.startswith("parametrizations.weight.")
        ]
        for full, parameter in self._model.named_parameters(remove_duplicate=False):
            owned.append((full.rpartition(".")[0] or full, parameter))
        for owner, parameter in owned:
            if storage_of(parameter):
                self._parameters[storage_of(parameter)].append((*interval(parameter), owner))

    def __enter__(self) -> Recorder:
        self._hooks = hooked(self._model, self._before, self._after)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._hooks.close()

    def name(self, module: nn.Module) -> str:
        """The first qualified name of a module."""
        return self._names[id(module)]

    @property
    def macs(self) -> Counter[str]:
        """Module name -> multiply-accumulates that were counted with its parameters."""
        result = Counter(self.other_macs)
        for name, calls in self.calls.items():
            if not isinstance(self._layers[name], nn.Embedding):
                result[name] += sum(call.rows for call in calls) * prod(self._shapes[name])
        return result

    @property
    def total_macs(self) -> int:
        """Multiply-accumulates of everything that was counted."""
        return self.macs.total()

    # ---- layers, by hook

    def _by_hook(self, module: nn.Module) -> bool:
        if site_kind(module):
            return not self.by_operators and self._names[id(module)] not in self._own
        return isinstance(module, nn.RNNBase)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._running.append(module)
        self._counted_by_hook += self._by_hook(module) or isinstance(module, ParametrizationList)

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self._running.pop()
        if self._by_hook(module):
            if output is not None:  # None: the layer raised
                self._count(module, args[0] if args else next(iter(kwargs.values())), output)
                if kwargs.get("output_size") is not None or (is_transposed(site_kind(module)) and len(args) > 1):
                    self.sized.add(self._names[id(module)])
            self._counted_by_hook -= 1
        elif isinstance(module, ParametrizationList):
            # Computing a weight costs nothing per row. Its result is held as the layer's weight.
            self._counted_by_hook -= 1
            if isinstance(output, torch.Tensor):
                self._hold(output, self._names[id(module)].rpartition(".parametrizations.")[0])

    def _count(self, module: Any, given: Any, output: Any) -> None:
        name = self._names[id(module)]
        if (what := _unusual(given)) is not None:
            self.unusual[name] = what
            given, output = _plain(given), _plain(output)
        if isinstance(given, torch.Tensor) and not isinstance(module, nn.RNNBase):
            number = self._seen.setdefault(given, next(self._number))
            # A tensor written in place between two calls is another input: the version tells them apart.
            self.read.setdefault(name, []).append((number, writes(given)))
        if isinstance(module, nn.RNNBase):
            # Every time step of every sample meets every weight of every layer and direction.
            steps = prod((given.data if isinstance(given, PackedSequence) else given).shape[:-1])
            weights = (getattr(module, part) for part in module._flat_weights_names if part.startswith("weight"))
            self.other_macs[name] += steps * sum(weight.numel() for weight in weights)
            return
        if dims := spatial_dims(module):
            call = _conv_call(given, output, dims, is_transposed(site_kind(module)))
        else:
            call = _linear_call(given.numel() if isinstance(module, nn.Embedding) else prod(given.shape[:-1]))
        self.calls.setdefault(name, []).append(call)

    # ---- everything else, by operator

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if torch.is_inference_mode_enabled():
            # In inference mode composite operators, such as a whole linear layer, arrive undivided. Their parts are
            # run under this mode again, so that each is seen by itself.
            super().__enter__()
            try:
                output = func.decompose(*args, **(kwargs or {}))
            finally:
                super().__exit__(None, None, None)
            if output is not NotImplemented:
                return output
        output = func(*args, **(kwargs or {}))
        if not self._counted_by_hook:
            self._see(func, args, kwargs or {}, output)
        return output

    def _see(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        name = func.overloadpacket.__name__
        if name in _CONVOLUTIONS:
            given, weight = args[0], args[1]
            transposed = name != "cudnn_convolution" and args[6]  # the seventh argument of the others
            # Each output meets I/G x taps numbers of the weight; transposed, each input meets O/G x taps of them.
            macs = (given if transposed else output).numel() * prod(weight.shape[1:])
            self._product(name, macs, [weight], _conv_call(given, output, weight.dim() - 2, transposed))
        elif name in _MATMULS:
            left, right = (args[position] for position in _MATMULS[name])
            macs = left.numel() * (right.shape[-1] if right.dim() > 1 else 1)
            self._product(name, macs, [right, left], None)
            self._derive(args, kwargs, output)  # a product of two parameters is a weight again (LoRA, for one)
        else:
            self._derive(args, kwargs, output)
            if (why := _why_not_counted(func, name)) is not None:
                self.not_counted[name] = why

    def _product(self, operator: str, macs: int, factors: list[torch.Tensor], call: Call | None) -> None:
        owner = self._owner_of_product(factors)
        if owner is None:
            self.not_counted[operator] = "a product of two activations, such as attention"
            return
        if owner not in self._layers:
            self.other_macs[owner] += macs
            return
        running = self._running[-1] if self._running else self._model
        if running is not self._layers[owner]:
            self.direct.setdefault(owner, in_words(running, self._names[id(running)]))
            self.hosts.setdefault(owner, self._names[id(running)])
        # A call of the layer multiplies each of its rows with the whole weight. A remainder shows a product with a
        # part of the weight, which has no row count.
        rows, rest = divmod(macs, prod(self._shapes[owner]))
        if rest or isinstance(self._layers[owner], nn.Embedding):
            self.other_macs[owner] += macs
        else:
            self.calls.setdefault(owner, []).append(call or _linear_call(rows))

    def _owner_of_product(self, factors: list[torch.Tensor]) -> str | None:
        for factor in factors:
            if (owner := self._owner(factor)) is not None:
                return owner
        # A layer with its own forward may mix the weight with activations (a normalised or modulated weight), so that
        # the factor is not made from parameters alone. The shape gives it away.
        for module in reversed(self._running):
            name = self._names[id(module)]
            if name in self._own:
                shape = self._shapes[name]
                return name if any(tuple(f.shape) in (shape, shape[::-1]) for f in factors) else None
        return None

    def _owner(self, tensor: torch.Tensor) -> str | None:
        storage = storage_of(tensor)
        for start, end, owner in self._parameters.get(storage, ()):
            if start <= tensor.storage_offset() < end:
                return owner
        return self._derived[storage][1] if storage in self._derived else None

    def _derive(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        """Note whether an operator made its output from parameters alone; a site layer owns it before all others."""
        owners = [self._owner(leaf) for leaf in tensor_leaves((args, kwargs))]
        named = [owner for owner in owners if owner is not None]
        for tensor in tensor_leaves(output):
            if owners and len(named) == len(owners):
                self._hold(tensor, next((owner for owner in named if owner in self._layers), named[0]))
            else:  # an activation written into memory that held a derived weight
                self._derived.pop(storage_of(tensor), None)

    def _hold(self, tensor: torch.Tensor, owner: str) -> None:
        if storage_of(tensor) and self._owner(tensor) is None:
            self._derived[storage_of(tensor)] = (tensor, owner)


def _unusual(given: Any) -> str | None:
    """The kind of a tensor without ordinary rows, in words."""
    if not isinstance(given, torch.Tensor):
        return None
    if given.is_nested:
        return "nested tensors"
    return "tensors inside of torch.vmap" if torch._C._functorch.is_functorch_wrapped_tensor(given) else None


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """All rows of an unusual tensor."""
    if tensor.is_nested:
        return tensor.values() if tensor.layout is torch.jagged else torch.cat([*tensor.unbind()])
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def _linear_call(rows: int) -> Call:
    return Call(rows=rows, in_positions=rows, in_size=(), out_size=())


def _conv_call(given: torch.Tensor, output: torch.Tensor, dims: int, transposed: bool) -> Call:
    samples = given.shape[0] if given.dim() == dims + 2 else 1  # a single sample needs no batch dimension
    in_size, out_size = tuple(given.shape[-dims:]), tuple(output.shape[-dims:])
    rows = samples * prod(in_size if transposed else out_size)
    return Call(rows=rows, in_positions=samples * prod(in_size), in_size=in_size, out_size=out_size)


def _why_not_counted(func: Any, name: str) -> str | None:
    if func.is_view or _MOVES.match(name):
        return None
    if torch.Tag.pointwise in func.tags:
        return "element-wise work"
    return next((why for pattern, why in _LEFT_OUT.items() if re.search(pattern, name)), "no rule counts this operator")
