"""Methods of the literature by name: the settings that make Rankwise do what was published, one-shot.

| name | metric | rule | what is not as published |
|---|---|---|---|
| svd | weight | uniform | |
| asvd | magnitude | sensitivity | a knapsack over its probes, where ASVD searches one threshold for all |
| fwsvd | rows | uniform | |
| svd_llm | uncentred | uniform | without the further updates of the factors |
| bolaco | pooled | bolaco | without training, see `training.scale_diagonals_` |
| modegpt | uncentred | uniform | the MLPs alone, by ridge leverage; attention stays dense, all MLPs have one share |
| zs_svd | uncentred | zero_sum | which component leaves is decided by its order, and nothing is corrected afterwards |
| lems | uncentred | sensitivity, one probe | svd alone |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..names import METHOD_SETS, check_name


@dataclass(frozen=True, kw_only=True)
class NamedMethod:
    """The settings of a method of the literature.

    Attributes:
        metric, rule, formats, round_to: as for `choose`.
        joint: as for `collect`.
        source: authors, title, year, arXiv id.
    """

    name: str
    source: str
    metric: str = "uncentred"
    rule: str = "uniform"
    formats: tuple[str, ...] = ("svd",)
    joint: bool = False
    round_to: int | str = "auto"

    @property
    def wishes(self) -> dict[str, Any]:
        """The arguments of `choose`."""
        names = ("metric", "rule", "formats", "round_to")
        return {name: getattr(self, name) for name in names}


_TABLE = (
    NamedMethod(name="svd", metric="weight", source="Eckart, Young, 1936"),
    NamedMethod(
        name="asvd", metric="magnitude", rule="sensitivity", source="Yuan et al., ASVD, 2023, arXiv 2312.05821"
    ),
    NamedMethod(name="fwsvd", metric="rows", source="Hsu et al., 2022, arXiv 2207.00112"),
    NamedMethod(name="svd_llm", source="Wang et al., SVD-LLM, 2024, arXiv 2403.07378"),
    NamedMethod(name="bolaco", metric="pooled", rule="bolaco", round_to=8, source="Ji et al., 2024, arXiv 2405.10616"),
    NamedMethod(
        name="modegpt",
        formats=("nystrom:order=leverage",),
        joint=True,
        source="Lin et al., MoDeGPT, 2024, arXiv 2408.09632",
    ),
    NamedMethod(name="zs_svd", rule="zero_sum", source="Zero-Sum SVD, 2026, arXiv 2602.02848"),
    NamedMethod(name="lems", rule="sensitivity:probes=1,depth=5,floor=0.3", source="Thoma et al., LEMS, ICML 2026"),
)
NAMED: dict[str, NamedMethod] = {method.name: method for method in _TABLE}


def get_named(name: str, where: str = "") -> NamedMethod:
    """A method by its name; a ValueError with near names for one that does not exist."""
    check_name("method set", name, METHOD_SETS, where)
    return NAMED[name]


def method_set(name: str) -> dict[str, Any]:
    """The arguments of `compress` that make it a method of the literature.

    Methods that try plans (`asvd`, `lems`, `bolaco`) need `evaluate` too, `zs_svd` statistics with the gradients of a
    loss on labels (`stats`), and `modegpt` a network with MLPs.

    Args:
        name: one of `names.METHOD_SETS`.

    Raises:
        ValueError: for another name.

    Example:
        >>> method_set("svd_llm")["metric"], method_set("svd_llm")["method"]
        ('uncentred', 'one-shot')
    """
    named = get_named(name)
    return {**named.wishes, "joint": named.joint, "method": "one-shot"}
