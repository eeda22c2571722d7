"""Figures of language models: windows, multiple choice, neighbours of embeddings, tokens per second."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .teller import Teller

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..inputs.data import Data

# Rows that are read and written together, beside one row.
ROWS = 8


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the table.

    Attributes:
        values: by network, as printed.
        beside: the compressed network beside the dense one.
    """

    title: str
    values: Mapping[str, str]
    beside: str = ""


@dataclass(frozen=True, kw_only=True)
class LanguageFigures:
    """What is measured beyond the figures of any network; the fields are options of `rankwise evaluate`.

    Raises:
        ValueError: for options without effect, or numbers out of range.
    """

    context: int | None = None
    stride: int | None = None
    start_token: bool = False
    choices: Path | None = None
    neighbours: bool = False
    generate: int | None = None
    lines: list[Line] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, least in (("context", 2), ("stride", 1), ("generate", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name} {value} must be at least {least}")
        if self.stride is not None and self.context is None:
            raise ValueError("--stride is of windows: give --context N, the tokens of one, too")
        if self.start_token and self.context is None and self.choices is None:
            raise ValueError("--start-token has no effect without --context N or --choices FILE.jsonl")

    @property
    def asked(self) -> bool:
        """Whether anything is."""
        return bool(self.context or self.choices or self.neighbours or self.generate)

    def check(self, networks: Mapping[str, nn.Module], model: str, data: Data) -> None:
        """Refuse, before any measuring, what the network or the data does not have."""
        from ..evaluate import predicts_next
        from ..inputs.hugging_face import is_hugging_face
        from ..inputs.questions import read_questions

        if not self.asked:
            return
        if not is_hugging_face(model):
            raise ValueError(f"--context, --choices, --neighbours and --generate are for hf: models, not {model}")
        first = next(iter(data.inputs))
        if (self.context or self.choices or self.generate) and not predicts_next(networks["dense"], first):
            raise ValueError(
                f"--context, --choices and --generate are for networks that predict the next token; {model} does not"
            )
        if self.neighbours and len(networks) < 2:
            raise ValueError("--neighbours compares two networks: name the compressed one with --artifact DIR")
        self._start(model)
        if self.choices:
            read_questions(self.choices)

    def measure(
        self,
        out: Teller,
        networks: Mapping[str, nn.Module],
        data: Data,
        model: str,
        samples: int | None,
        threads: int,
    ) -> dict[str, Any]:
        """Measure what is asked; `lines` are for the table, and what is returned for `--json`.

        Args:
            networks: the dense one first.
            data: as rows of tokens; its name is the file that windows move over.
            model: MODEL of the command line, for its tokenizer.
            samples: windows at most; None for all.
            threads: while tokens are counted per second.
        """
        found: dict[str, Any] = {}
        if self.context:
            with out.step("perplexity by windows"):
                found["windows"] = self._windows(networks, data, model, self.context, samples)
        if self.choices:
            with out.step("multiple choice"):
                found["choices"] = self._choices(networks, model, self.choices)
        if self.neighbours:
            with out.step("embedding rows"):
                found["neighbours"] = self._neighbours(networks, data)
        if self.generate:
            with out.step("reading and writing tokens"):
                found["generation"] = self._generation(networks, data, self.generate, threads)
        return found

    def _start(self, model: str) -> int | None:
        """The start token, if it is asked for."""
        from ..inputs.hugging_face import HUGGING_FACE, hugging_face_tokenizer

        if not self.start_token:
            return None
        token: int | None = hugging_face_tokenizer(model.removeprefix(HUGGING_FACE)).bos_token_id
        if token is None:
            raise ValueError(f"the tokenizer of {model} has no start token; leave out --start-token")
        return token

    def _windows(
        self, networks: Mapping[str, nn.Module], data: Data, model: str, context: int, samples: int | None
    ) -> dict[str, Any]:
        from ..evaluate import perplexity_ratio, surprise, windows
        from ..inputs.text import text_tokens

        start = self._start(model)
        tokens = text_tokens(Path(data.name), model, networks["dense"])
        if samples is not None:
            size = context - (start is not None)
            tokens = tokens[: size + (samples - 1) * (self.stride or max(1, size // 2))]
        surprises = {
            name: surprise(network, windows(tokens, context=context, stride=self.stride, start=start))
            for name, network in networks.items()
        }
        found: dict[str, Any] = {name: each.perplexity for name, each in surprises.items()}
        counted = surprises["dense"].tokens
        beside, (dense, *others) = "", list(surprises.values())
        for other in others:
            if len(dense.nats_N) > 1:
                ratio = perplexity_ratio(other, dense)
                found["ratio"], beside = asdict(ratio), f"{ratio} times"
        how = f"windows of {context}" + (", start token" if start is not None else "")
        self._line(f"perplexity, {how}, {counted:,} tokens", found, "{:.5g}", beside)
        return {**found, "tokens": counted, "context": context, "stride": self.stride, "start_token": self.start_token}

    def _choices(self, networks: Mapping[str, nn.Module], model: str, path: Path) -> dict[str, Any]:
        from ..evaluate import multiple_choice
        from ..inputs.hugging_face import HUGGING_FACE, hugging_face_tokenizer
        from ..inputs.questions import read_questions

        questions, tokenizer = read_questions(path), hugging_face_tokenizer(model.removeprefix(HUGGING_FACE))
        start = self._start(model)
        before = [] if start is None else [start]

        def encode(text: str) -> list[int]:
            return [*before, *tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]

        most = getattr(getattr(networks["dense"], "config", None), "max_position_embeddings", None)
        answers = {name: multiple_choice(each, questions, encode, most=most) for name, each in networks.items()}
        raw = {name: each.accuracy for name, each in answers.items()}
        by_length = {name: each.accuracy_by_length for name, each in answers.items()}
        for title, each in (("", raw), (" by length", by_length)):
            values = {name: str(interval) for name, interval in each.items()}
            self._line(f"right of {len(questions)} questions{title}, %", values, "{}")
        return {
            "questions": len(questions),
            "accuracy": {name: asdict(each) for name, each in raw.items()},
            "accuracy_by_length": {name: asdict(each) for name, each in by_length.items()},
        }

    def _neighbours(self, networks: Mapping[str, nn.Module], data: Data) -> dict[str, Any]:
        from ..evaluate import embedded, similarity

        dense, small = (embedded(network, data.inputs) for network in networks.values())
        found = similarity(dense, small)
        self._line(f"cosine of {len(dense)} rows", {}, "", str(found.cosine))
        self._line("nearest neighbours kept, %", {}, "", str(found.kept))
        return {"rows": len(dense), "cosine": asdict(found.cosine), "kept": asdict(found.kept)}

    def _generation(
        self, networks: Mapping[str, nn.Module], data: Data, new: int, threads: int
    ) -> list[dict[str, Any]]:
        from ..evaluate import generation

        found = []
        for prompt in _prompts(data):
            written = generation(networks, prompt, new=new, threads=threads)
            rows, last = len(prompt), written[list(networks)[-1]]
            both = last.faster(written["dense"]) if len(networks) > 1 else ("", "")
            for part, beside in zip(("prefill", "decode"), both, strict=True):
                values = {name: getattr(each, part).per_second for name, each in written.items()}
                self._line(f"tokens per second, {part}, {_rows(rows)}", values, "{:.1f}", str(beside))
            held = {name: each.cache_bytes for name, each in written.items()}
            share = f"{last.cache_bytes / held['dense']:.1%}" if len(networks) > 1 else ""
            self._line(f"bytes of the cache, {_rows(rows)} of {prompt.shape[1] + new}", held, "{:,}", share)
            own = {
                name: {
                    "prefill_per_second": each.prefill.per_second,
                    "decode_per_second": each.decode.per_second,
                    "cache_bytes": each.cache_bytes,
                }
                for name, each in written.items()
            }
            found.append({"rows": rows, "read": prompt.shape[1], "written": new, **own})
        return found

    def _line(self, title: str, values: Mapping[str, Any], form: str, beside: str = "") -> None:
        told = {name: form.format(values[name]) for name in ("dense", "compressed") if name in values}
        self.lines.append(Line(title=title, values=told, beside=beside))


def _prompts(data: Data) -> Iterator[Tensor]:
    """One row of the data, and as many as its first batch has, at most `ROWS`."""
    rows = next(iter(data.inputs))["input_ids"]
    yield rows[:1]
    if len(rows) > 1:
        yield rows[:ROWS]


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"
