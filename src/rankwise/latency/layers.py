"""The layers of every option of a site, with inputs of the sizes that they get in the network."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..formats import get_format
from ..formats.building import CHANNELS_LAST
from ..formats.weights import read
from ..layers.kinds import Role
from ..network.site import Site
from ..network.sites import Sites
from ..plan import DENSE, Option
from ..running.calling import call
from ..running.exclusive import own_thread
from ..running.pristine import pristine
from .engine import Work


@dataclass(frozen=True)
class Input:
    """The input of a layer; `channels_last` tells whether its channels lie together in memory."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool = False

    @classmethod
    def of(cls, x: Tensor) -> Input:
        """The input like a tensor."""
        layout = CHANNELS_LAST.get(x.dim())
        last = layout is not None and x.is_contiguous(memory_format=layout) and not x.is_contiguous()
        return cls(tuple(x.shape), x.dtype, last)

    def tensor(self, layer: nn.Module) -> Tensor:
        """Random numbers, or row numbers for an embedding; always the same."""
        generator = torch.Generator().manual_seed(0)
        if not self.dtype.is_floating_point:
            rows: Any = getattr(layer, "num_embeddings", 1)
            return torch.randint(rows, self.shape, generator=generator, dtype=self.dtype)
        x = torch.randn(self.shape, generator=generator).to(self.dtype)
        return x.contiguous(memory_format=CHANNELS_LAST[x.dim()]) if self.channels_last else x

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        return f"{size} {str(self.dtype).removeprefix('torch.')}{' channels last' * self.channels_last}"


# Site -> layer of the site -> its inputs, one for each call in one forward.
Calls = Mapping[str, Mapping[str, list[Input]]]


def calls_of(model: nn.Module, sites: Sites, example: Any) -> Calls:
    """Run the model once and record the inputs of its sites.

    Raises:
        ValueError: if the model rejects the example.
    """
    calls: dict[str, dict[str, list[Input]]] = {name: defaultdict(list) for name in sites}
    with ExitStack() as stack:
        stack.enter_context(pristine(model))
        for site in sites.values():
            layers = {id(model.get_submodule(name)): name for name in (*reversed(site.aliases), site.name)}
            for name in layers.values():
                seen = calls[site.name][name]

                def look(module: nn.Module, args: Any, kwargs: Any, seen: list[Input] = seen) -> None:
                    seen.append(Input.of(next(each for each in (*args, *kwargs.values()) if isinstance(each, Tensor))))

                hook = model.get_submodule(name).register_forward_pre_hook(own_thread(look), with_kwargs=True)
                stack.callback(hook.remove)
        call(model, example)
    return calls


def layers_of(model: nn.Module, site: Site, option: Option, bias: bool) -> Iterator[tuple[str, nn.Module]]:
    """The layers of a site with an option, by the names of those they replace; the values of chains are random.

    Args:
        model: the dense network, not changed.
        site: of the network.
        option: dense, or a format and ranks.
        bias: whether chains have a bias.
    """
    several = site.role in (Role.TIED, Role.JOINT)
    names = site.names if several else (site.name,)
    layers = {name: model.get_submodule(name) for name in names}
    if option.format == DENSE:
        yield from layers.items()
        return
    chains = get_format(option.format).build_site(site.role, layers, option.ranks, bias).chains
    for name, chain in chains.items():
        yield name, randomised(chain)


def randomised(module: nn.Module) -> nn.Module:
    """The module with random values of usual size: denormal numbers would take longer. One on "meta" comes to the CPU.

    Modules that are made on "meta" draw none of the user's random numbers.
    """
    if any(parameter.is_meta for parameter in module.parameters()):
        module = module.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            values = torch.randn(parameter.shape, generator=generator)
            fan_in = math.prod(parameter.shape[1:]) if parameter.dim() > 1 else 1
            parameter.copy_(values / math.sqrt(max(fan_in, 1)))
    return module


def work_of(layer: nn.Module, given: Input | Work) -> Work:
    """A copy of a layer in eval mode, with a new input on its device, or with the input of another work."""
    layer = copy.deepcopy(layer).eval().requires_grad_(False)
    if isinstance(given, Work):
        return Work(layer, given.given)
    return Work(layer, ((given.tensor(layer).to(device_of(layer)),), {}))


def device_of(module: nn.Module) -> torch.device:
    """Device of the first parameter."""
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def signature(site: Site, layer: nn.Module, given: Input, option: Option, bias: bool) -> str:
    """The key of a measurement: the dense layer, its input, and the option that replaces it.

    Example:
        >>> site = Site(name="fc", kind="linear", weight_shape=(8, 4))
        >>> option = Option(format="svd", ranks=(2,), params=24, macs=24, error=0.1)
        >>> signature(site, nn.Linear(4, 8), Input((1, 4), torch.float32), option, True)
        'linear 8x4 float32 bias @ 1x4 float32: svd 2 bias'
    """
    kind = "embedding" if isinstance(layer, nn.Embedding) else site.kind
    words = [kind, "x".join(map(str, site.weight_shape)), site.dtype]
    words += ["part " + "x".join(map(str, read(layer).shape))] * (site.role is Role.JOINT)
    if site.is_convolution:
        words += [f"{name}{_joined(getattr(site, name))}" for name in ("stride", "padding", "dilation")]
        words += [f"output_padding{_joined(site.output_padding)}"] * any(site.output_padding)
        words += [f"groups{site.groups}"] * (site.groups > 1)
        words += [site.padding_mode] * (site.padding_mode != "zeros")
    weight: Any = layer.weight
    words += ["channels last"] * (weight.dim() == 4 and not weight.is_contiguous())
    words += ["bias"] * site.has_bias
    built = " ".join([option.format, *([",".join(map(str, option.ranks))] if option.ranks else [])])
    return f"{' '.join(words)} @ {given}: {built}{' bias' * (bias and option.format != DENSE)}"


def _joined(values: tuple[int, ...] | str) -> str:
    return values if isinstance(values, str) else ",".join(map(str, values))
