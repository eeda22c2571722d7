"""Moments of all sites of a network, and their file: safetensors, no pickle."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from ..files import built, parse_json, replacing, shown, told
from ..files.tensors import SEAL, read_tensors, write_tensors
from ..linalg.kept import Kept
from ..linalg.two_sided import TwoSided
from ..metrics import METRICS, FitMetric, get_metric
from ..network.sites import Sites
from .moments import LARGEST_DENSE, NO_GRADIENTS, Moments, merge
from .output_gradients import Gradients

logger = logging.getLogger("rankwise")

# Bytes of decompositions of large layers that curves hand on to fits; those for which there is no room are made again.
# A linear layer of 4,096 inputs and outputs takes 67 MB.
MOST_KEPT = 2**30

_KIND = "rankwise statistics"
_VERSION = 2  # the first with a sha256 of the content
_TENSORS = tuple(item.name for item in fields(Moments) if item.name not in ("count", "gradients"))
# Only in files with gradients; a reader that does not know them reads the rest.
_GRADIENTS, _LOOKUP_GRADIENTS, _GRADIENT_SAMPLES = "gradients", "lookup_gradients", "gradient_samples"
_FURTHER = {"lookups_DD": _LOOKUP_GRADIENTS, "rows_GT": "weight_gradients", "cross_GTT": "output_gradients"}


class Statistics(Mapping[str, Moments]):
    """Moments by site name, and what fits share with curves (at most `MOST_KEPT` bytes).

    Args:
        sites: of the network that they were collected from.
        samples: calibration samples seen.
        seed: of the sampled positions.
    """

    def __init__(self, moments: Mapping[str, Moments], *, sites: Sites, samples: int, seed: int = 0) -> None:
        self._moments = dict(moments)
        self.sites = sites
        self.samples = samples
        self.seed = seed
        self._kept = Kept(MOST_KEPT)

    def __getitem__(self, site: str) -> Moments:
        return self._moments[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._moments)

    def __len__(self) -> int:
        return len(self._moments)

    def __repr__(self) -> str:
        return f"Statistics({len(self)} sites, {self.samples} samples)"

    def merge(self, other: Statistics) -> Statistics:
        """Statistics of both sets of samples together; gradients come from the samples that have them.

        Raises:
            ValueError: if they belong to networks of different structure, or to different sites.
        """
        if other.sites.fingerprint != self.sites.fingerprint:
            raise ValueError("statistics of networks of different structure cannot be merged")
        if set(other) != set(self):
            raise ValueError(f"the statistics cover different sites: {sorted(set(self) ^ set(other))[:5]}")
        moments = {}
        for name, found in self.items():
            ours, theirs = found.gradients, other[name].gradients
            gradients = ours.merge(theirs) if ours is not None and theirs is not None else ours or theirs
            moments[name] = replace(merge([found, other[name]]), gradients=gradients)
        return Statistics(moments, sites=self.sites, samples=self.samples + other.samples, seed=self.seed)

    def metric(self, site: str, metric: str | FitMetric, shrink: float = 0.0) -> TwoSided:
        """The metric of a site's fits, see `Moments.two_sided`.

        Raises:
            ValueError: naming the site, if the statistics hold nothing for it, or not the gradients that are needed.
        """
        metric = get_metric(metric)
        moments = self.require(site, gradients=metric.needs_gradients)
        centred = metric.centred and self.sites[site].chain_bias(metric)
        found = metric.of(moments if centred else moments.uncentred(), shrink)
        if METRICS.get(metric.name) is metric:
            for group, inputs in enumerate(found.inputs):
                inputs.place = self._kept.place(site, metric.name, shrink, group)
        return found

    def require(self, site: str, gradients: bool = False) -> Moments:
        """The moments of a site; a ValueError that names it if they, or required gradients, are missing."""
        if site not in self:
            raise ValueError(
                f"the statistics hold nothing for site {site!r}; collect them again for this network, or ignore it"
            )
        if gradients and self[site].gradients is None:
            raise ValueError(f"site {site!r}: {NO_GRADIENTS}")
        return self[site]

    @property
    def with_rows(self) -> tuple[str, ...]:
        """Names of the sites that hold input rows: activations of single samples."""
        return tuple(name for name, moments in self.items() if moments.rows_GND is not None)

    def without_rows(self) -> Statistics:
        """The same statistics with moments in place of rows, to share with people who may not see the data.

        Fits are the same. Moments of fewer rows than inputs are logged as a warning: they determine those rows up to a
        rotation, and only more samples make them a summary.

        Raises:
            ValueError: if a site has too many inputs for a moment (above 8,192).
        """
        moments = {}
        for name, found in self.items():
            if found.rows_GND is not None and found.dim > LARGEST_DENSE:
                raise ValueError(
                    f"site {name!r} has {found.dim:,} inputs, too many for a moment (at most {LARGEST_DENSE:,}): its "
                    "statistics are rows of activations; leave it out (collect's `only`), or keep the rows"
                )
            if found.count <= found.dim:
                logger.warning(
                    "site %r: %d rows were seen for %d inputs, so the moment determines them up to a rotation; "
                    "collect from more samples before you share it",
                    name,
                    found.count,
                    found.dim,
                )
            # Means of parts with a few rows would show those rows.
            moments[name] = replace(found.without_rows(), parts_KGD=None, parts_K=None)
        return Statistics(moments, sites=self.sites, samples=self.samples, seed=self.seed)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file; an older file stays until the new one is complete.

        For sites with fewer rows than inputs, or above 8,192 inputs, it holds rows of activations, which is logged;
        `without_rows().save(path)` writes moments only.

        Raises:
            OSError: if it cannot be written.
        """
        path = Path(path)
        if rows := self.with_rows:
            logger.warning(
                "%s holds activations of single samples for %d of %d sites (%s, ...): if your data is private, so is "
                "this file; without_rows() keeps only moments",
                path.name,
                len(rows),
                len(self),
                rows[0],
            )
        tensors, counts, gradient_samples = {}, {}, {}
        for name, moments in self.items():
            counts[name] = moments.count
            for kind in _TENSORS:
                value = getattr(moments, kind)
                if value is not None:
                    tensors[f"{kind}:{name}"] = value.contiguous()
            if moments.gradients is not None:
                tensors[f"{_GRADIENTS}:{name}"] = moments.gradients.second_GTT.contiguous()
                for own, kind in _FURTHER.items():
                    if (value := getattr(moments.gradients, own)) is not None:
                        tensors[f"{kind}:{name}"] = value.contiguous()
                gradient_samples[name] = moments.gradients.samples
        about = {
            "kind": _KIND,
            "version": str(_VERSION),
            "counts": json.dumps(counts),
            "sites": json.dumps(self.sites.to_dict()),
            "samples": str(self.samples),
            "seed": str(self.seed),
            _GRADIENT_SAMPLES: json.dumps(gradient_samples),
        }
        with replacing(path) as new:
            write_tensors(tensors, new, about)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read a file that `save` wrote.

        Raises:
            ValueError: if the file is missing, damaged, of another kind or of another version.
        """
        with told(f"cannot read statistics from {path}", "collect them again"):
            tensors, about = read_tensors(Path(path))
            if about.get("kind") != _KIND:
                raise ValueError("it does not hold statistics written by Statistics.save")
            if about.get("version") != str(_VERSION):
                raise ValueError(f"it has version {about.get('version')}; this Rankwise reads version {_VERSION}")
            if SEAL not in about:
                raise ValueError("its sha256 is missing")
            return _read(tensors, about)


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """The metadata of the file, each field as JSON."""

    counts: Mapping[str, int]
    sites: Sites
    samples: int
    seed: int
    gradient_samples: Mapping[str, int] = field(default_factory=dict)


def _read(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> Statistics:
    plain = {item.name: parse_json(about[item.name]) for item in fields(_Stored) if item.name in about}
    stored = built(_Stored, plain, "statistics")
    if unknown := sorted(stored.counts.keys() - stored.sites.keys()):
        raise ValueError(f"it counts rows of {shown(unknown[0])}, which is not a site")
    moments = {name: _moments(name, stored, tensors) for name in stored.counts}
    return Statistics(moments, sites=stored.sites, samples=stored.samples, seed=stored.seed)


def _moments(name: str, stored: _Stored, tensors: Mapping[str, Tensor]) -> Moments:
    site = stored.sites[name]
    sizes = {"G": site.groups, "D": site.in_features, "T": site.out_features // site.groups, "V": site.out_features}

    def take(kind: str, axes: str, needed: bool = False) -> Tensor | None:
        tensor = tensors.get(f"{kind}:{name}")
        if tensor is None:
            if needed:
                raise ValueError(f"site {shown(name)}: the tensor {kind!r} is missing")
            return None
        wanted = [sizes.get(axis, size) for axis, size in zip(axes, tensor.shape, strict=False)]
        if len(axes) != tensor.dim() or list(tensor.shape) != wanted or not tensor.is_floating_point():
            raise ValueError(f"site {shown(name)}: {kind!r} cannot be {tensor.dtype} of shape {tuple(tensor.shape)}")
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"site {shown(name)}: {kind!r} holds numbers that are not finite")
        return tensor

    found = {kind: take(kind, kind.rpartition("_")[2], kind == "mean_GD") for kind in _TENSORS}
    gradients = None
    if name in stored.gradient_samples:
        second_GTT = take(_GRADIENTS, "GTT", needed=True)
        assert second_GTT is not None
        gradients = Gradients(
            samples=stored.gradient_samples[name],
            second_GTT=second_GTT,
            **{own: take(kind, own.rpartition("_")[2]) for own, kind in _FURTHER.items()},
        )
    return Moments(count=stored.counts[name], gradients=gradients, **found)  # type: ignore[arg-type]
