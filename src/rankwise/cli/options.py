"""Arguments and options that several commands share, each defined once: the same name means the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_DATA = "Data"
_BUDGET = "Budget and constraints"
_OUTPUT = "Output"

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="torchvision:NAME, or FILE.py:FUNCTION, a function that returns the network.",
    ),
]
DATA_HELP = (
    "A folder of pictures (class folders give labels), FILE.npz, .npy, .safetensors, .pt, torchvision:NAME, "
    "or FILE.py:FUNCTION, a function that returns batches or a Dataset."
)
Data = Annotated[str, typer.Argument(metavar="DATA", show_default=False, help=DATA_HELP)]
OptionalData = Annotated[str | None, typer.Argument(metavar="[DATA]", show_default=False, help=DATA_HELP)]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        metavar="FILE",
        show_default=False,
        help="Trained weights: .safetensors, or a checkpoint of tensors (.pt, .pth). Wrappers such as state_dict and "
        "prefixes such as module. are taken off.",
    ),
]

DataOption = Annotated[str | None, typer.Option("--data", metavar="DATA", rich_help_panel=_DATA, help=DATA_HELP)]
Test = Annotated[
    str | None,
    typer.Option(
        "--test",
        metavar="DATA",
        rich_help_panel=_DATA,
        help="Held-out data for the figures; without it they come from the calibration samples.",
    ),
]
Transform = Annotated[
    str | None,
    typer.Option(
        "--transform",
        metavar="STEPS",
        rich_help_panel=_DATA,
        help='What is done to each picture: "resize=256,crop=224"; also resize=240x320 and gray.',
    ),
]
Size = Annotated[
    int | None,
    typer.Option(
        "--size", metavar="N", rich_help_panel=_DATA, help="Resize the shorter side to N and take the middle N x N."
    ),
]
Normalise = Annotated[
    str,
    typer.Option(
        "--normalise",
        metavar="HOW",
        rich_help_panel=_DATA,
        help='imagenet, unit (0..1), symmetric (-1..1), none, or "mean=0.5;std=0.25" on the 0..1 scale. auto: imagenet '
        "for torchvision models, unit for other bytes, none for floats.",
    ),
]
Batch = Annotated[int, typer.Option("--batch", metavar="N", rich_help_panel=_DATA, help="Samples in a batch.")]
Samples = Annotated[
    int,
    typer.Option("--samples", metavar="N", rich_help_panel=_DATA, help="Calibration samples, chosen by --seed."),
]
TestSamples = Annotated[
    int | None,
    typer.Option("--samples", metavar="N", rich_help_panel=_DATA, help="Use N samples, chosen by --seed; else all."),
]
Root = Annotated[
    Path, typer.Option("--root", metavar="DIR", rich_help_panel=_DATA, help="Where torchvision data sets are on disk.")
]
Split = Annotated[
    str | None,
    typer.Option(
        "--split",
        metavar="NAME",
        rich_help_panel=_DATA,
        help="Split of a named data set: train, val, test. Else train to calibrate, test to evaluate.",
    ),
]
Batches = Annotated[
    str,
    typer.Option(
        "--batches",
        metavar="HOW",
        rich_help_panel=_DATA,
        help="What a function's tuples hold: inputs; pairs of inputs and labels; auto: what the network takes.",
    ),
]
ExampleBatch = Annotated[
    bool,
    typer.Option(
        "--example-batch",
        rich_help_panel=_DATA,
        help="Count and check for the whole first batch; else for one sample, where one does.",
    ),
]
InputShape = Annotated[
    str | None,
    typer.Option(
        "--input-shape",
        metavar="C,H,W",
        rich_help_panel=_DATA,
        help="Shape of one input where no data is given, without the batch.",
    ),
]
Stats = Annotated[
    Path | None,
    typer.Option(
        "--stats",
        metavar="FILE",
        rich_help_panel=_DATA,
        help="Statistics: read where the file exists, also from other data (`rankwise collect`), else collected from "
        "DATA and written there.",
    ),
]
Shrink = Annotated[
    str | None,
    typer.Option(
        "--shrink",
        metavar="SHARE",
        rich_help_panel=_BUDGET,
        help="Share of the weight metric, 0 to 1, for statistics of other data; auto: what DATA as held-out samples "
        "choose, which is done unasked for one-shot from a file with DATA.",
    ),
]

Keep = Annotated[
    list[str] | None,
    typer.Option(
        "--keep",
        metavar="WHAT=HOW MUCH",
        rich_help_panel=_BUDGET,
        show_default=False,
        help="macs, params, bytes or latency to keep: macs=0.5, macs=50%, params=1.5M, latency=0.6, latency=8ms; "
        "repeated, all are met.",
    ),
]
Rule = Annotated[
    str,
    typer.Option(
        "--rule",
        metavar="NAME",
        rich_help_panel=_BUDGET,
        help="How ranks are chosen, with settings after a colon (see docs/rules.md).",
    ),
]
Formats = Annotated[
    str,
    typer.Option(
        "--formats",
        metavar="NAME,NAME",
        rich_help_panel=_BUDGET,
        help="Formats that a layer may take, or auto for all (see `rankwise formats`); dense always may.",
    ),
]
JUDGE_HELP = (
    "agreement, relative_error, cosine, ... or FILE.py:FUNCTION judges networks instead of what fits their outputs: "
    "(model, batches) -> number, with :lower where lower is better."
)
Metric = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        metavar="NAME",
        rich_help_panel=_BUDGET,
        show_default=False,
        help="Of the fits: input (default), error of the layer's output on the data; diagonal: the same without "
        "covariances; fisher: outputs weighed by the gradients of the loss; weight: error of the weight, no data "
        f"needed. Given once more, {JUDGE_HELP}",
    ),
]
Judge = Annotated[
    str | None, typer.Option("--metric", metavar="NAME", rich_help_panel=_DATA, show_default=False, help=JUDGE_HELP)
]
ClassesDim = Annotated[
    int | None,
    typer.Option(
        "--classes-dim",
        metavar="N",
        rich_help_panel=_DATA,
        help="The dimension of the outputs that holds the classes, where it cannot be told.",
    ),
]
Ignore = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore", metavar="PATTERN", rich_help_panel=_BUDGET, help="Leave these layers dense: conv1, head.*, re:^fc."
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        "--include",
        metavar="PATTERN",
        rich_help_panel=_BUDGET,
        help="Touch only these layers. Embeddings and heads of language models have to be named: '*' and lm_head.",
    ),
]
Pin = Annotated[
    list[str] | None,
    typer.Option(
        "--pin",
        metavar="PATTERN=FORMAT:RANK",
        rich_help_panel=_BUDGET,
        help="Fix a layer: layer1.0.conv1=tucker2:16,16, fc=svd:64, fc=slr:k=64,sr=0.5,rr=0.5, conv1=dense.",
    ),
]
Floor = Annotated[
    list[str] | None,
    typer.Option(
        "--floor",
        metavar="PATTERN=RANK",
        rich_help_panel=_BUDGET,
        help="Lowest rank, or fraction of full rank: layer4.*=32.",
    ),
]
Cap = Annotated[
    list[str] | None,
    typer.Option(
        "--cap",
        metavar="PATTERN=RANK",
        rich_help_panel=_BUDGET,
        help="Highest rank, or fraction of full rank: layer1.*=16.",
    ),
]
Tie = Annotated[
    list[str] | None,
    typer.Option(
        "--tie",
        metavar="PATTERN",
        rich_help_panel=_BUDGET,
        help="Same format and ranks for all layers that it matches: layer1.*.conv1; repeated, each is a group.",
    ),
]
RoundTo = Annotated[
    str,
    typer.Option(
        "--round-to",
        metavar="N",
        rich_help_panel=_BUDGET,
        help="Make ranks multiples of N; auto: 8 in large layers, 1 in small ones, 16 for a latency budget.",
    ),
]
FloorRule = Annotated[
    str | None,
    typer.Option(
        "--floor-rule",
        metavar="NAME",
        rich_help_panel=_BUDGET,
        help="A rule that says the least that every factorised layer gets: stable_rank, energy:share=0.5.",
    ),
]
TargetDrop = Annotated[
    float | None,
    typer.Option(
        "--target-drop",
        metavar="POINTS",
        rich_help_panel=_BUDGET,
        help="The smallest network that loses no more: points of accuracy where there are labels, else of agreement, "
        "hundredths of a relative error or a cosine, or what --metric counts in.",
    ),
]
Minimise = Annotated[
    str,
    typer.Option(
        "--minimise",
        metavar="WHAT",
        rich_help_panel=_BUDGET,
        help="macs, params, bytes or latency: what --target-drop makes small; --keep then adds limits.",
    ),
]
Method = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="NAME",
        rich_help_panel=_BUDGET,
        help="sequential: each layer repairs the errors before it; one-shot: all at once from the statistics; "
        "auto: sequential where there is DATA.",
    ),
]
Importance = Annotated[
    str | None,
    typer.Option(
        "--importance",
        metavar="NAME",
        rich_help_panel=_BUDGET,
        help="How slr selects neurons: weight, activation, cost (change of the loss of labels, or of own answers, to "
        "first order), curvature (to second order, exact where it is largest); "
        "with :published the factors stay those of the SVD. Without it: by what they add to the layer's output.",
    ),
]

Fold = Annotated[
    bool,
    typer.Option(
        "--fold", help="Let layers do the work of the batch norms after them. An artifact remembers that it was done."
    ),
]
Storage = Annotated[
    str,
    typer.Option(
        "--storage",
        metavar="NAME",
        rich_help_panel=_OUTPUT,
        help="plain; entropy: a smaller file with the same bits; int8+entropy: weights rounded to 8 bits first.",
    ),
]

Engine = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="NAME",
        rich_help_panel=_BUDGET,
        help="Where a latency budget is measured: torch, compile, onnxruntime, executorch, cuda, or roofline:FILE.yaml "
        "for a device that is not here.",
    ),
]
Threads = Annotated[
    int, typer.Option("--threads", metavar="N", rich_help_panel=_OUTPUT, help="Threads when latency is measured.")
]
Engines = Annotated[
    str,
    typer.Option(
        "--engines",
        metavar="NAME,NAME",
        rich_help_panel=_OUTPUT,
        help="Where the latency of the figures is measured: torch, compile, onnxruntime, executorch, cuda, none; auto: "
        "torch, and onnxruntime where it is installed.",
    ),
]
LatencyBatch = Annotated[
    int,
    typer.Option(
        "--latency-batch", metavar="N", rich_help_panel=_OUTPUT, help="Samples in a batch when latency is measured."
    ),
]
Json = Annotated[
    str | None,
    typer.Option(
        "--json", metavar="FILE", rich_help_panel=_OUTPUT, help="Also write all figures as JSON; - for standard output."
    ),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", rich_help_panel=_OUTPUT, help="Of everything random.")]
Debug = Annotated[bool, typer.Option("--debug", rich_help_panel=_OUTPUT, help="Show the traceback of an error.")]
