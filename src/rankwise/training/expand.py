"""Layers as chains of factors at full rank, and back: the network computes the same with other parameters.

Letters: G groups, T outputs per group, C channels per group, Q taps, D = C * Q inputs, R full rank.

Sources: De Lathauwer, De Moor, Vandewalle, "A Multilinear Singular Value Decomposition", 2000 (the bases); He, Jiang,
Wu, "Convolutional Neural Network Compression Based on Low-Rank Decomposition", 2024, arXiv 2408.16289 (training with
more parameters than the layer has, in factors kept orthonormal; which factors these are is our reading).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..formats import LowRank, Ranks, get_format
from ..formats.base import Factors
from ..formats.building import same_tensor_options
from ..formats.convolution import PLAIN, TRANSPOSED
from ..formats.weights import grouped, site_bias, site_weight
from ..layers.kinds import FED, Role, is_convolution, is_transposed, site_kind
from ..layers.modules import TransposedLinear
from ..linalg.symmetric import eigh
from ..network.hub import allow_pretrained
from ..network.replacing import replace
from ..network.site import Site
from ..network.sites import Sites
from ..running.exclusive import exclusive
from ..running.guards import unwrap
from ..surgery.rebuild import rebuild

FORMATS = ("tucker2", "svd")
# Why sites of several slots stay as they are.
SHARED = {
    Role.TIED: "its weight is shared by an embedding and a linear layer",
    **dict.fromkeys(FED, "it is one with the layers that compute its inputs"),
    Role.JOINT: "it is fitted as one with other layers",
}


@exclusive
def expand_(model: nn.Module, sites: Sites, format: str = "tucker2", only: str | Iterable[str] = "*") -> nn.Module:
    """Replace every chosen layer by a chain of full rank; the network computes the same function.

        tucker2:  W = G x_T A x_C B,   A^T A = I,  B^T B = I      A: T x T, B: C x C, the core G as large as W
        svd:      W = A (A^T W)  or  W = (W B) B^T                 the smaller side as a square orthonormal factor

    The core, the factor that is not orthonormal, has the singular values of the layer's unfoldings. With `tucker2` a
    k x k kernel gets the first form, linear layers and 1 x 1 kernels the second; with `svd` all layers the second.
    A layer of T outputs and C channels grows by T^2 + C^2 numbers, or by the square of its smaller side.

    Args:
        model: changed in place and returned; make optimisers afterwards.
        sites: its sites, from `rankwise.find`.
        format: "tucker2" or "svd".
        only: patterns of the layers. Unchanged stay those that cannot be factorised, embeddings that share their weight
            with a linear layer, and embeddings and language model heads that only "*" matches.

    Raises:
        ValueError: for another format, a pattern that matches nothing, or if there is nothing to expand.

    Example:
        >>> import rankwise as rw
        >>> model, x = nn.Sequential(nn.Conv2d(8, 16, 3)), torch.randn(1, 8, 9, 9)
        >>> before = model(x)
        >>> torch.allclose(expand_(model, rw.find(model, x))(x), before, atol=1e-5)
        True
    """
    if format not in FORMATS:
        raise ValueError(f"format {format!r} is not one of {', '.join(FORMATS)}")
    model = unwrap(model)
    sites.check_structure(model)
    named = sites.select(only)
    chosen = [site for site in sites.included(only) if site.dense_because is None and site.role not in SHARED]
    if not chosen:
        reason = named[0].dense_because or SHARED.get(named[0].role) or named[0].unless_named
        raise ValueError(f"nothing to expand; site {named[0].name!r} must stay as it is: {reason}")
    fitted = [(site, full_rank(site, site_weight(model, site), format), site_bias(model, site)) for site in chosen]
    # Building a layer draws initial values, soon overwritten: the caller's random numbers must not depend on it.
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng():
        for site, factors, bias in fitted:
            form = get_format(factors.format)
            chain = rebuild(model, site.role, site.names, form, factors.ranks, bias is not None)
            form.fill(chain, factors, bias)
    return model


def full_rank(site: Site, weight: Tensor, format: str) -> Factors:
    """The factors of a weight at full ranks, all but one of them orthonormal; see `expand_`."""
    W_GTCQ = grouped(site, weight)
    W_GTD = W_GTCQ.flatten(2)
    ranks: Ranks
    if format == "tucker2" and site.taps > 1:
        A_GTT, B_GCC = _basis(W_GTD), _basis(W_GTCQ.transpose(1, 2).flatten(2))
        core = torch.einsum("gtcq,gtr,gcs->grsq", W_GTCQ, A_GTT, B_GCC)
        tensors, ranks = {"A_GTR": A_GTT, "G_GRSQ": core, "B_GCS": B_GCC}, (A_GTT.shape[1], B_GCC.shape[1])
    elif W_GTD.shape[1] < W_GTD.shape[2]:
        U_GTR = _basis(W_GTD)
        tensors, ranks, format = {"U_GTR": U_GTR, "V_GRD": U_GTR.mT @ W_GTD}, (U_GTR.shape[1],), "svd"
    else:
        V_GRD = _basis(W_GTD.mT).mT
        tensors, ranks, format = {"U_GTR": W_GTD @ V_GRD.mT, "V_GRD": V_GRD}, (V_GRD.shape[1],), "svd"
    return Factors(format=format, ranks=ranks, tensors=tensors, weight=weight.double(), error=0.0)


@exclusive
def merge_(model: nn.Module) -> nn.Module:
    """Replace every chain by one dense layer: the product of its factors, and the bias.

    Exact up to rounding, for chains of any format. The result is a network as before `expand_`, for `rankwise.find`,
    `choose` and `factorise`.

    Args:
        model: changed in place and returned.

    Raises:
        ValueError: if it has no chain, or one that shares its factors with an embedding.

    Example:
        >>> import rankwise as rw
        >>> model, x = nn.Sequential(nn.Linear(8, 4)), torch.randn(1, 8)
        >>> merge_(expand_(model, rw.find(model, x)))
        Sequential(
          (0): Linear(in_features=8, out_features=4, bias=True)
        )
    """
    model = unwrap(model)
    chains = {name: part for name, part in model.named_modules(remove_duplicate=False) if isinstance(part, LowRank)}
    if not chains:
        raise ValueError(f"{type(model).__name__} has no chain of factors to merge")
    for name, chain in chains.items():
        if any(isinstance(part, TransposedLinear) for part in chain):
            raise ValueError(f"chain {name!r} shares its factors with an embedding and cannot be merged")
    for chain in dict.fromkeys(chains.values()):
        replace(model, [name for name, other in chains.items() if other is chain], dense_layer(chain))
    allow_pretrained(model)
    return model


def dense_layer(chain: LowRank) -> nn.Module:
    """The layer that a chain stands for, with its dtype, device, mode and `requires_grad`."""
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng():
        weight, bias = chain.weight.detach(), chain.bias
        layer = _layer_like(chain, bias is not None, same_tensor_options(chain))
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias.detach())
    layer.train(chain.training)
    own = chain.bias
    layer.requires_grad_(any(parameter.requires_grad for parameter in chain.parameters() if parameter is not own))
    if own is not None:
        layer.bias.requires_grad_(own.requires_grad)
    return layer


def _layer_like(chain: Any, bias: bool, options: dict[str, Any]) -> Any:
    kind = chain.kind
    if kind == "embedding":
        return nn.Embedding(chain.num_embeddings, chain.embedding_dim, chain.padding_idx, **options)
    if kind == "conv1d_hf":
        from transformers.pytorch_utils import Conv1D

        return Conv1D(chain.nf, chain.nx).to(**options)
    if not is_convolution(kind):
        return nn.Linear(chain.in_features, chain.out_features, bias, **options)
    # One layer of the chain has the size, stride, padding and dilation of a direction; in all others they are trivial.
    parts: list[Any] = [part for part in chain.modules() if is_convolution(site_kind(part))]
    dims = len(chain.kernel_size)

    def widest(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        words = [value for value in values if isinstance(value, str)]
        return words[0] if words else tuple(max(value[d] for value in values) for d in range(dims))

    options |= {name: widest(name) for name in ("stride", "padding", "dilation")}
    options |= {"kernel_size": tuple(chain.kernel_size), "groups": chain.groups, "bias": bias}
    modes = [part.padding_mode for part in parts if part.padding_mode != "zeros"]
    options["padding_mode"] = modes[0] if modes else "zeros"
    if is_transposed(kind):
        options["output_padding"] = widest("output_padding")
    classes = TRANSPOSED if is_transposed(kind) else PLAIN
    return classes[dims - 1](chain.in_channels, chain.out_channels, **options)


def _basis(matrix_GNM: Tensor) -> Tensor:
    """Orthonormal eigenvectors of `M M^T`, largest singular values first, G x N x N."""
    return torch.stack([eigh(matrix_NM @ matrix_NM.mT)[1] for matrix_NM in matrix_GNM])
