"""Options of the dense network, of the data, and of reading it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..output import Output
from .base import argument, data, plain

if TYPE_CHECKING:
    from torch import nn

    from ...inputs.data import Data, DataOptions

MODEL_HELP = (
    "torchvision:NAME, timm:NAME_OR_FOLDER, hf:NAME_OR_FOLDER (transformers), or FILE.py:FUNCTION, a function that "
    "returns the network."
)
DATA_HELP = (
    "A folder of pictures (class folders give labels), FILE.npz, .npy, .safetensors, .pt, text for hf: "
    "models (.txt, .jsonl), torchvision:NAME, "
    "or FILE.py:FUNCTION, a function that returns batches or a Dataset."
)
InputShape = Annotated[
    str | None, data("--input-shape C,H,W", "Shape of one input where no data is given, without the batch.")
]
DataArgument = Annotated[str, argument("DATA", DATA_HELP)]
CalibrationSamples = Annotated[
    int | None,
    data("--samples N", "Number of calibration samples, chosen by --seed; by default 512, of text 64 rows of tokens."),
]
Test = Annotated[
    str | None, data("--test DATA", "Held-out data for the figures; without it they come from the calibration samples.")
]


# Rows of text for fits alone: with the calibration samples, over sixty tokens for each of 1,536 inputs.
REFITTED = 128


def calibration_samples(data: str | None, asked: int | None) -> int:
    """How many samples calibrate: as many as are asked for, or a usual number; a row of text has many positions."""
    from ...inputs.text import TEXTS

    if asked is not None:
        return asked
    return 64 if Path(data or "").suffix in TEXTS else 512


@dataclass(frozen=True, kw_only=True)
class Network:
    """The dense network."""

    model: Annotated[str, argument("MODEL", MODEL_HELP)]
    weights: Annotated[
        Path | None,
        plain(
            "--weights FILE",
            "Trained weights: .safetensors, or a checkpoint of tensors (.pt, .pth). Wrappers such as state_dict "
            "and prefixes such as module. are removed.",
            shown=False,
        ),
    ] = None

    random_weights: Annotated[
        bool, plain("--random-weights", "Random weights for a network of timm, whose own are not here.", shown=False)
    ] = False

    @property
    def is_transformer(self) -> bool:
        """Whether it is a model of transformers."""
        return self.model.startswith("hf:")

    @property
    def rule(self) -> str:
        """The rule unless one is named: relative errors of a transformer's layers do not compare."""
        return "fisher" if self.is_transformer else "knapsack"

    def load(self) -> nn.Module:
        """The network with its weights."""
        from ...inputs.models import load_model
        from ...inputs.timm_models import is_timm

        if self.random_weights and (self.weights is not None or not is_timm(self.model)):
            raise ValueError(
                f"--random-weights is for timm: models without --weights, not for {self.model}"
                f"{' with ' + str(self.weights) if self.weights else ''}"
            )
        if self.is_transformer:
            with suppress(ImportError):  # without transformers, reading the model says so
                import_module("rankwise.integrations.transformers")  # reads compressed networks too
        return load_model(self.model, self.weights, not self.random_weights)

    def warn(self, out: Output) -> None:
        """Say that a network is untrained: Rankwise downloads no weights, also none of torchvision."""
        from ...inputs.models import is_torchvision

        if self.random_weights or (self.weights is None and is_torchvision(self.model)):
            out.note(f"{self.model} has random weights; give trained ones with --weights FILE")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How data is read."""

    transform: Annotated[
        str | None,
        data("--transform STEPS", 'Steps for each picture: "resize=256,crop=224"; also resize=240x320 and gray.'),
    ] = None
    size: Annotated[int | None, data("--size N", "Resize the shorter side to N and take the middle N x N.")] = None
    length: Annotated[int | None, data("--length N", "Tokens in a sample of text; by default 512 at most.")] = None
    normalise: Annotated[
        str,
        data(
            "--normalise HOW",
            'imagenet, unit (0..1), symmetric (-1..1), none, or "mean=0.5;std=0.25" on the 0..1 scale. auto: '
            "imagenet for torchvision models, unit for other bytes, none for floats.",
        ),
    ] = "auto"
    root: Annotated[Path, data("--root DIR", "Folder of the torchvision data sets on disk.")] = Path("data")
    split: Annotated[
        str | None,
        data(
            "--split NAME",
            "Split of a named data set: train, val, test. By default train to calibrate, test to evaluate.",
        ),
    ] = None
    batches: Annotated[
        str,
        data(
            "--batches HOW",
            "What tuples of a function hold: inputs; pairs of inputs and labels; auto: what the network takes.",
        ),
    ] = "auto"
    example_batch: Annotated[
        bool, data("--example-batch", "Count and check with the whole first batch, not with one sample.")
    ] = False

    def how(self, seed: int) -> DataOptions:
        """These options as the library takes them."""
        from ...inputs.data import DataOptions

        names = {field.name for field in fields(DataOptions)}
        return DataOptions(seed=seed, **{name: value for name, value in vars(self).items() if name in names})


@dataclass(frozen=True, kw_only=True)
class OneInput(Reading):
    """What one input looks like, for commands that need no more of the data."""

    data: Annotated[str | None, data("--data DATA", DATA_HELP)] = None
    input_shape: InputShape = None

    def example(self, network: nn.Module, model: str, seed: int, shape: str | None = None) -> Any:
        """An input of the network; `shape` is taken if the user gives neither data nor a shape."""
        from ...inputs.loading import load_example

        shape = self.input_shape or (None if self.data else shape)
        return load_example(self.data, shape, self.how(seed), model, network)


@dataclass(frozen=True, kw_only=True)
class Batched(Reading):
    """How data is read, in batches."""

    batch: Annotated[int, data("--batch N", "Samples in a batch.")] = 64

    def load(
        self, data: str, network: nn.Module, model: str, *, seed: int, samples: int | None = None, split: str = "train"
    ) -> Data:
        """Data as the network takes it; `samples` of it, chosen by the seed, None for all."""
        from ...inputs.loading import load_data

        return load_data(data, self.how(seed), network=network, model=model, samples=samples, default_split=split)


@dataclass(frozen=True, kw_only=True)
class Samples(Batched):
    """DATA, by default all of it."""

    data: DataArgument
    samples: Annotated[int | None, data("--samples N", "Number of samples, chosen by --seed; by default all.")] = None


@dataclass(frozen=True, kw_only=True)
class LearnedFrom(Samples):
    """DATA to learn from, and data to judge on."""

    test: Test = None


@dataclass(frozen=True, kw_only=True)
class Collected(Batched):
    """DATA that statistics are collected from."""

    data: DataArgument
    samples: CalibrationSamples = None


@dataclass(frozen=True, kw_only=True)
class Calibration(Batched):
    """DATA that statistics are collected from, or the statistics themselves, and data to judge on."""

    data: Annotated[str | None, argument("[DATA]", DATA_HELP)] = None
    samples: CalibrationSamples = None
    test: Test = None
    input_shape: InputShape = None
    stats: Annotated[
        Path | None,
        data(
            "--stats FILE",
            "Statistics: read where the file exists, also from other data (`rankwise collect`), else collected "
            "from DATA and written there.",
        ),
    ] = None

    @property
    def count(self) -> int:
        """Samples to take."""
        return calibration_samples(self.data, self.samples)

    def further(
        self, wanted: int | None, calibration: Data | None, network: nn.Module, model: str, seed: int
    ) -> Data | None:
        """Rows of text beyond the calibration samples, None if none are wanted or, unless they were asked for, left."""
        from ...inputs.loading import load_data
        from ...inputs.text import TEXTS

        is_text = self.data is not None and Path(self.data).suffix in TEXTS
        if wanted is not None and wanted < 0:
            raise ValueError(f"--refit-samples {wanted} must be 0 or more")
        if wanted and not is_text:
            raise ValueError(f"--refit-samples {wanted} takes rows of text; DATA is {self.data or 'not given'}")
        if wanted == 0 or not is_text or calibration is None:
            return None
        if not calibration.left:
            if wanted is None:
                return None
            raise ValueError(
                f"--refit-samples {wanted}: all {calibration.samples} rows of {self.data} are calibration samples; "
                "give more text, or fewer --samples"
            )
        how = replace(self.how(seed), skip=self.count)
        assert self.data is not None
        return load_data(self.data, how, network=network, model=model, samples=wanted or REFITTED)
