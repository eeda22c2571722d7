"""The formats that are tried unless others are named: a table of engines, decided by measurement.

`python -m benchmarks.frontier` measures accuracy and time with and without the depthwise format. Where a depthwise
layer costs little beside its neighbours, as in engines that compute blocks of channels, a chain of 1 x 1, depthwise and
1 x 1 gives the most accuracy for its time. In eager torch each depthwise layer takes as long as the dense one.
"""

from __future__ import annotations

from ..latency import Engine
from ..layers.kinds import Role
from ..network.site import Site

# One decomposition gives their curves, exactly or nearly; the curves of most others ("auto") are fitted.
DEFAULT_FORMATS = ("svd", "spatial_svd", "tucker2")
# The format of three layers whose middle one is depthwise.
DEPTHWISE = "cp3"
# The formats of layers joined with those that compute what they read.
JOINED = {Role.HIDDEN: "nystrom", Role.HEADS: "head_svd"}
# By engine, the widest layers (by their smaller side) that try it too. In wider ones it needs so many terms for the
# same error that Tucker-2 and pairs of layers are as fast.
DEPTHWISE_UP_TO = {"onnxruntime": 64, "executorch": 64, "compile": 64}


def formats_for(engine: Engine | str | None, site: Site) -> tuple[str, ...]:
    """Names of the formats that a site tries by default, for the engine that will run it; None if that is not known.

    Example:
        >>> site = Site(name="conv", kind="conv2d", weight_shape=(32, 16, 3, 3))
        >>> formats_for("torch", site), formats_for("onnxruntime", site)
        (('svd', 'spatial_svd', 'tucker2'), ('svd', 'spatial_svd', 'tucker2', 'cp3'))
    """
    if site.role in JOINED:
        return (JOINED[site.role],)
    name = engine if engine is None or isinstance(engine, str) else engine.name
    narrow = min(site.out_features // site.groups, site.weight_shape[1])
    return (*DEFAULT_FORMATS, DEPTHWISE) if narrow <= DEPTHWISE_UP_TO.get(name or "", 0) else DEFAULT_FORMATS
