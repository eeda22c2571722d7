"""What a network returns: scores of classes and their dimension, embeddings, detections, or values.

The output for a batch is judged in this order:

1. lists of mappings with "boxes", "labels" and "scores" are detections;
2. several tensors are values, unless one is called `logits`, or `out` as in torchvision's segmentation;
3. integers are answers: numbers of classes;
4. the user's `classes_dim` names the dimension of classes; else labels do: one whole number for every entry but the
   classes. With labels 0 and 1, a single output is the score of a yes. Fractional labels mean values;
5. probabilities or their logarithms along a dimension make it that of the classes; vectors of length 1 are embeddings;
6. a name such as `last_hidden_state` means embeddings, the shape of an input means values;
7. `[N, K]` has classes in dimension 1; else they are where the layer that made the output has its features; else
   last in `logits` `[N, T, K]`, and in dimension 1 of `[N, K, H, W]` and `[N, K, D, H, W]`;
8. everything else is values: one output, or `[N, A, B]` without further signs.

If only 7 decides, without the name `logits`, the dimension is *taken*, not known, and figures say so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.kinds import spatial_dims
from .calling import call, describe, tensors_in
from .exclusive import exclusive, own_thread
from .guards import unwrap
from .pristine import pristine

IGNORED = (-100, 255)  # labels that do not count: in torch's cross entropy, and in maps of labels
EMBEDDINGS = ("embed", "hidden_state", "pooler_output", "feature")
FEW = 4  # samples whose numbers are tested
TOLERANCE, HALF_TOLERANCE = 1e-3, 1e-2  # of sums that should be 1, in single and in half precision
LAST_CALLS = 4  # layer calls, the last ones, among which the one that made the output is searched


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What a network's outputs are.

    Attributes:
        kind: "scores" of classes, "sign" (one score of a yes), "answers" (numbers of classes), "embeddings",
            "detections" or "values".
        name: of the tensor among several outputs; "" for a single one.
        dim: the dimension of the classes, or of an embedding's numbers.
        shares: whether scores are probabilities.
        known: whether the dimension is known, not taken.

    Example:
        >>> print(Outputs.of(nn.Linear(8, 3), torch.randn(4, 8)))
        dimension 1 taken as 3 classes
        >>> Outputs.of(nn.Conv2d(3, 21, 1), torch.randn(2, 3, 8, 9), torch.zeros(2, 8, 9, dtype=int)).dim
        1
        >>> Outputs.of(nn.Linear(8, 1), torch.randn(4, 8)).kind
        'values'
    """

    kind: str
    name: str = ""
    dim: int = 1
    classes: int = 0
    shares: bool = False
    known: bool = True
    why: str

    @classmethod
    @exclusive
    def of(
        cls,
        model: nn.Module,
        batch: Any,
        labels: Any = None,
        *,
        classes_dim: int | None = None,
        scores: bool = False,
    ) -> Outputs:
        """Run a network on a batch and decide.

        Args:
            model: the network; left exactly as it was.
            classes_dim: the dimension of the classes, if the user gave it.
            scores: the outputs are scores of classes; only their dimension is decided.

        Raises:
            ValueError: if the network returns no tensor, `classes_dim` is not a dimension of the output, or scores
                were asked for and no dimension of classes is found.
        """
        model = unwrap(model)
        made: deque[tuple[Tensor, int]] = deque(maxlen=LAST_CALLS)

        def keep(layer: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                made.append((output, -1 if isinstance(layer, nn.Linear) else -1 - spatial_dims(layer)))

        with pristine(model):
            for layer in model.modules():
                if isinstance(layer, nn.Linear) or spatial_dims(layer):
                    layer.register_forward_hook(own_thread(keep))  # which `pristine` removes
            output = call(model, batch)
        problem = getattr(getattr(model, "config", None), "problem_type", None)  # of transformers' classifiers
        case = _Case(type(model).__name__, output, batch, labels, classes_dim, scores, problem, tuple(made))
        return case.decide()

    @classmethod
    def seen(cls, output: Any) -> Outputs:
        """Decide from the output alone."""
        return _Case("the network", output, None, None, None, False, None, ()).decide()

    @property
    def is_choice(self) -> bool:
        """Whether the outputs choose something that two networks can agree on: classes, or yes and no."""
        return self.has_scores or self.kind == "answers"

    @property
    def has_scores(self) -> bool:
        """Whether there are scores to choose by."""
        return self.kind in ("scores", "sign")

    def scores(self, output: Any) -> Tensor:
        """The scores in an output, classes last; for a sign those of no and yes.

        Raises:
            ValueError: if the output differs in kind from the one that this was decided by.
        """
        found = tensor_at(output, self.name)
        if found is None or (self.kind == "scores" and not self.dim < found.dim()):
            raise ValueError(f"the network returned {described(output)}; {self} are needed")
        if self.kind == "sign":
            return torch.stack((1 - found if self.shares else torch.zeros_like(found), found), -1)
        return found.movedim(self.dim, -1) if self.kind == "scores" else found

    def logits(self, output: Any) -> Tensor:
        """The scores as logits: their softmax gives the probabilities of the classes."""
        scores = self.scores(output)
        return scores.clamp_min(torch.finfo(scores.dtype).tiny).log() if self.shares else scores

    def __str__(self) -> str:
        """The decision in a few words, for people."""
        where = f" of {self.name!r}" if self.name else ""
        if self.kind == "scores" and self.known:
            return f"{self.classes} classes at dimension {self.dim}{where}"
        if self.kind == "scores":
            return f"dimension {self.dim}{where} taken as {self.classes} classes"
        if self.kind == "sign":
            return f"yes or no at {0.5 if self.shares else 0}{where}"
        return f"{self.kind}{where}"


@dataclass(frozen=True)
class _Case:
    """One output to judge, by the rules at the head of this file."""

    model: str
    output: Any
    batch: Any
    labels: Any
    classes_dim: int | None
    forced: bool
    problem: str | None
    made: tuple[tuple[Tensor, int], ...]

    def decide(self) -> Outputs:
        leaves = dict(leaves_of(self.output))
        if not leaves:
            raise ValueError(f"{self.model} returned {described(self.output)}, which holds no tensor to compare")
        found = self._found(leaves)
        if self.forced and not found.is_choice:
            raise ValueError(
                f"{self.model} gave {described(leaves.get(found.name, self.output))}; scores of shape "
                f"[samples, classes], or an output with logits, are needed ({found.why}); relative_error compares "
                "outputs of every kind"
            )
        return found

    def _found(self, leaves: Mapping[str, Tensor]) -> Outputs:
        if is_detections(self.output):
            return Outputs(kind="detections", why="they are boxes, labels and scores")
        name = _where(leaves)
        if name is None:
            vectors = [key for key, leaf in leaves.items() if leaf.is_floating_point()]
            if vectors and all(_is_embedding(key) for key in vectors):
                return Outputs(kind="embeddings", dim=-1, why=f"their names are {', '.join(vectors)}")
            return Outputs(kind="values", why=f"there are {len(leaves)} of them")
        leaf = leaves[name]
        if not leaf.is_floating_point():
            kind = "values" if leaf.is_complex() else "answers"
            return Outputs(kind=kind, name=name, why=f"they are of type {leaf.dtype}")
        for step in (self._said, self._labelled, self._seen):
            if (found := step(name, leaf)) is not None:
                return found
        return self._made(name, leaf)

    def _scores(self, name: str, leaf: Tensor, dim: int, why: str, known: bool = True) -> Outputs:
        dim %= leaf.dim()
        shares = bool((leaf >= 0).all()) and _ones(leaf[:FEW].float().sum(dim), leaf)
        classes = leaf.shape[dim]
        return Outputs(kind="scores", name=name, dim=dim, classes=classes, shares=shares, known=known, why=why)

    def _said(self, name: str, leaf: Tensor) -> Outputs | None:
        if self.classes_dim is None:
            return None
        shape = list(leaf.shape)
        if not -leaf.dim() <= self.classes_dim < leaf.dim() or leaf.shape[self.classes_dim] < 2:
            raise ValueError(
                f"classes_dim is {self.classes_dim}, but {self.model} gives outputs of shape {shape}; it is a "
                "dimension of at least 2 classes"
            )
        return self._scores(name, leaf, self.classes_dim, "you said so")

    def _labelled(self, name: str, leaf: Tensor) -> Outputs | None:
        if not isinstance(self.labels, Tensor):
            return None
        if self.labels.is_floating_point():
            return None if self.forced else Outputs(kind="values", name=name, why="the labels are not whole numbers")
        labels = self.labels[~ignored(self.labels)].cpu()
        low, high = (int(labels.min()), int(labels.max())) if labels.numel() else (0, 0)
        dims = [d for d in range(1, leaf.dim()) if leaf.shape[d] > 1 and fits(self.labels, leaf.shape, d)]
        held = [d for d in dims if low >= 0 and high < leaf.shape[d]] or dims
        if len(held) == 1:
            return self._scores(name, leaf, held[0], "the labels have one number for every entry but the classes")
        if leaf.numel() == self.labels.numel() and low >= 0 and high <= 1 and (leaf.dim() < 2 or leaf.shape[1] == 1):
            shares = bool(((leaf >= 0) & (leaf <= 1)).all())  # of a sigmoid
            return Outputs(kind="sign", name=name, classes=2, shares=shares, why="there is one, and labels are 0 and 1")
        return None

    def _seen(self, name: str, leaf: Tensor) -> Outputs | None:
        """Decide by the numbers, the name and the input."""
        if self.problem in ("regression", "multi_label_classification") and not self.forced:
            return Outputs(kind="values", name=name, why=f"problem_type is {self.problem}")
        few = leaf[:FEW].float()
        order = dict.fromkeys((1, leaf.dim() - 1, *range(1, leaf.dim()))) if leaf.dim() > 1 and leaf.numel() else {}
        dims = [dim for dim in order if leaf.shape[dim] > 1]
        for dim in dims:
            sums = few.sum(dim) if bool((few >= 0).all()) else few.logsumexp(dim).exp()
            if _ones(sums, leaf):
                return self._scores(name, leaf, dim, "they are probabilities or their logarithms")
        if self.forced or _is_scores(name):
            return None
        for dim in dims:
            if _ones(few.norm(dim=dim), leaf):
                return Outputs(kind="embeddings", name=name, dim=dim, why="they are vectors of length 1")
        if _is_embedding(name):
            return Outputs(kind="embeddings", name=name, dim=max(leaf.dim() - 1, 0), why="their name")
        for given in tensors_in(self.batch):
            images = leaf.dim() > 3 and given.dim() == leaf.dim() and given.shape[1] == leaf.shape[1]
            if given.is_floating_point() and (given.shape == leaf.shape or images):
                return Outputs(kind="values", name=name, why=f"they have the shape of an input, {list(leaf.shape)}")
        return None

    def _made(self, name: str, leaf: Tensor) -> Outputs:
        """Decide by the layer that made the output, and the number of dimensions."""
        named, shape = _is_scores(name), list(leaf.shape)
        by_layer = _dimension(leaf, self.made)
        if leaf.dim() <= 2:
            dim = leaf.dim() - 1
        elif by_layer is not None:
            dim = by_layer
        elif leaf.dim() > 3:
            dim = 1
        elif named:
            dim = 2
        else:
            why = f"which dimension of {shape} holds classes is not known; say it with classes_dim"
            return Outputs(kind="values", name=name, why=why)
        if dim < 1 or leaf.shape[dim] < 2:
            return Outputs(kind="values", name=name, why=f"one output for each sample, of shape {shape}")
        return self._scores(name, leaf, dim, "their name" if named else f"their shape, {shape}", named)


def leaves_of(output: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in an output, with its name: keys, fields and indices, joined by dots.

    Example:
        >>> [name for name, _ in leaves_of({"boxes": torch.zeros(2, 4), "maps": (torch.zeros(1), None)})]
        ['boxes', 'maps.0']
    """
    if isinstance(output, Tensor):
        yield name, output
        return
    for key, value in _parts(output):
        yield from leaves_of(value, f"{name}.{key}" if name else str(key))


def _parts(output: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(output, Mapping):  # the outputs of transformers are mappings
        yield from output.items()
    elif isinstance(output, tuple) and hasattr(output, "_fields"):
        yield from ((field, getattr(output, field)) for field in output._fields)
    elif isinstance(output, (tuple, list)):
        yield from enumerate(output)
    elif is_dataclass(output) and not isinstance(output, type):
        yield from ((field.name, getattr(output, field.name)) for field in fields(output))
    elif isinstance(getattr(output, "logits", None), Tensor):
        yield "logits", output.logits


def tensor_at(output: Any, name: str) -> Tensor | None:
    """The tensor of that name, as `leaves_of` names it."""
    return next((leaf for key, leaf in leaves_of(output) if key == name), None)


def is_detections(output: Any) -> bool:
    """Whether an output is a list with the boxes, labels and scores of every picture."""
    return (
        isinstance(output, (tuple, list))
        and len(output) > 0
        and all(isinstance(each, Mapping) and {"boxes", "labels", "scores"} <= each.keys() for each in output)
    )


def fits(labels: Tensor, shape: torch.Size, dim: int) -> bool:
    """Whether labels have one number for every entry of an output of that shape, its dimension of classes left out."""
    before, after = shape[:dim], shape[dim:][1:]
    return tuple(labels.shape) in ((*before, *after), (*before, 1, *after))


def ignored(labels: Tensor) -> Tensor:
    """Where labels do not count: -100, and in maps of labels 255."""
    mask = labels == IGNORED[0]
    return mask | (labels == IGNORED[1]) if labels.dim() > 2 else mask


def check_labels(labels: Tensor, classes: int, where: str = "labels") -> None:
    """Raise for labels that are not numbers of classes of the network.

    Args:
        labels: one for each sample, or a map of them; `ignored` ones may be anything.

    Raises:
        ValueError: naming the first wrong label and its place.

    Example:
        >>> check_labels(torch.tensor([0, 2, -100]), 3)
    """
    number = labels.double()
    wrong = (number != number.floor()) | (number < 0) | (number >= classes)
    wrong = (wrong & ~ignored(labels)).flatten().nonzero()
    if len(wrong):
        place = int(wrong[0])
        raise ValueError(
            f"{where}: number {place} of {labels.numel()} is {labels.flatten()[place].item():g}, but the network has "
            f"the classes 0 to {classes - 1}; number the classes from 0, or build the network with more of them"
        )


def described(value: Any) -> str:
    """A value in a message: dtype and shape of a tensor, else the type."""
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {list(value.shape)}"
    named = type(value).__name__
    return f"a {named} {describe(value)}" if isinstance(value, (Mapping, tuple, list)) else f"a {named}"


def _ones(sums: Tensor, leaf: Tensor) -> bool:
    tolerance = HALF_TOLERANCE if leaf.element_size() < 4 else TOLERANCE
    return bool(((sums - 1).abs() < tolerance).all())


def _where(leaves: Mapping[str, Tensor]) -> str | None:
    """The name of the output that may be scores: the only one, or by its name."""
    if len(leaves) == 1:
        return next(iter(leaves))
    if "logits" in leaves:
        return "logits"
    return "out" if "out" in leaves and leaves["out"].dim() > 3 else None


def _is_scores(name: str) -> bool:
    return name.rpartition(".")[2] in ("logits", "out")


def _is_embedding(name: str) -> bool:
    return any(word in name.lower() for word in EMBEDDINGS)


def _dimension(leaf: Tensor, made: tuple[tuple[Tensor, int], ...]) -> int | None:
    """The dimension of an output that holds the features of the layer that made it, also behind a transpose."""
    for output, dim in reversed(made):
        # A view of the same memory keeps size and stride of the features, wherever a transpose has put them.
        if output.data_ptr() == leaf.data_ptr() and output.numel() == leaf.numel() and -dim <= output.dim():
            features = (output.shape[dim], output.stride(dim))
            same = [d for d in range(leaf.dim()) if (leaf.shape[d], leaf.stride(d)) == features]
            return same[0] if len(same) == 1 else None
    return None
