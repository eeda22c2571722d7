"""Train in a few directions of the training before: accuracy by the number of directions, dense and factorised.

    python -m benchmarks.subspace [--networks lenet5 resnet8] [--forms dense tucker2 tensor_train] [--dims 10 20 40 80]
        [--epochs 20] [--again 8] [--checkpoints 81] [--samples N] [--seeds 0] [--quick] [--json FILE]

Each network is trained with SGD as the sources do (momentum 0.9, weight decay 1e-4, tenths of the rate at half and
three quarters), and its parameters are recorded at equal distances over the first half. Factorised networks are fitted
to the random weights at a third of the parameters, and trained as chains from there on.

- `full`: the whole training; `half`: at the last checkpoint.
- `average`: the mean of the checkpoints, batch norms computed anew.
- `dldr, P-SGD` and `dldr, P-BFGS`: from the initial weights in the principal directions, `--again` epochs.
- `averaging, P-SGD`: trainable weight averaging, from the mean, `--again` epochs.

The rate of P-SGD is the one of 1, 0.3 and 0.1 with the least loss on the training images; its seconds are of one run.
Test images are only read at the end. Batch norms are computed anew on training images before every test.
"""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import update_bn

import rankwise as rw
from benchmarks.common import Row, networks, parser, report, start
from benchmarks.orthogonal import Case
from rankwise.subspace import Checkpoints, ProjectedBFGS, ProjectedSGD, Recorder, Subspace, averaging, dldr

COLUMNS = ("network", "form", "params", "method", "dim", "seed", "epochs", "top1", "seconds")
KEEP = 1 / 3
BATCH, LARGE_BATCH = 128, 1024
RATE = {"lenet5": 0.05, "resnet8": 0.1}
MILESTONES = (0.5, 0.75)
PROJECTED_RATES = (1.0, 0.3, 0.1)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What one network is trained with."""

    case: Case
    network: str
    seed: int
    epochs: float
    again: float
    checkpoints: int

    def batches(self, epochs: float, size: int) -> Iterator[tuple[float, Tensor, Tensor]]:
        """The share of the training that is done, with a batch and its labels; flipped where the case says so."""
        generator = torch.Generator().manual_seed(self.seed)
        images, labels = self.case.images, self.case.labels
        steps = max(round(epochs * len(images) / size), 1)
        order = torch.empty(0, dtype=torch.long)
        for step in range(steps):
            if len(order) < size:
                order = torch.cat([order, torch.randperm(len(images), generator=generator)])
            some, order = order[:size], order[size:]
            x = images[some]
            if self.case.augment:
                flip = torch.rand(len(x), generator=generator) < 0.5
                x = torch.where(flip[:, None, None, None], x.flip(-1), x)
            yield step / steps, x, labels[some]

    def renewed(self, model: nn.Module) -> nn.Module:
        """A copy whose batch norms are computed anew."""
        model = copy.deepcopy(model)
        update_bn(self.case.images[:2048].split(256), model)
        return model.eval()

    @torch.no_grad()
    def loss(self, model: nn.Module) -> float:
        """Loss on training images; what is not finite counts as the worst."""
        found = float(cross_entropy(self.renewed(model)(self.case.images[:2048]), self.case.labels[:2048]))
        return found if math.isfinite(found) else math.inf


def built(setting: Setting, form: str) -> nn.Module:
    """The network with random weights, its hidden layers factorised unless it is dense."""
    torch.manual_seed(setting.seed)
    model = setting.case.build()
    if form == "dense":
        return model
    sites = rw.find(model.eval(), setting.case.images[:1])
    share = {"params": KEEP}
    plan = rw.choose(model, sites, keep=share, formats=[form], metric="weight", include=list(setting.case.hidden))
    return rw.factorise(model, plan)


def trained(setting: Setting, model: nn.Module, record: Recorder) -> tuple[nn.Module, nn.Module]:
    """The network after the whole training, and at the last checkpoint."""
    optimiser = torch.optim.SGD(
        model.parameters(), lr=RATE[setting.network], momentum=0.9, weight_decay=1e-4, nesterov=False
    )
    marks = [number / (setting.checkpoints - 1) / 2 for number in range(setting.checkpoints)]
    half = model
    model.train()
    for share, x, y in setting.batches(setting.epochs, BATCH):
        if marks and share >= marks[0]:
            marks.pop(0)
            record()
            half = copy.deepcopy(model)
        tenths = sum(share >= milestone for milestone in MILESTONES)
        optimiser.param_groups[0]["lr"] = RATE[setting.network] * 0.1**tenths
        optimiser.zero_grad()
        cross_entropy(model(x), y).backward()
        optimiser.step()
    return model, half


def best_sgd(setting: Setting, model: nn.Module, space: Subspace) -> tuple[nn.Module, float]:
    """The network of the best rate, and the seconds of one run."""
    begin = time.perf_counter()
    made = [projected_sgd(setting, model, space, rate) for rate in PROJECTED_RATES]
    seconds = (time.perf_counter() - begin) / len(made)
    return min(made, key=setting.loss), seconds


def projected_sgd(setting: Setting, model: nn.Module, space: Subspace, rate: float) -> nn.Module:
    """The network trained in the subspace by gradient descent."""
    model = copy.deepcopy(model).train()
    optimiser = ProjectedSGD(model, space, lr=rate, momentum=0.9)
    for share, x, y in setting.batches(setting.again, BATCH):
        optimiser.param_groups[0]["lr"] = rate * 0.1 ** sum(share >= milestone for milestone in MILESTONES)
        optimiser.zero_grad()
        cross_entropy(model(x), y).backward()
        optimiser.step()
    return model


def projected_bfgs(setting: Setting, model: nn.Module, space: Subspace) -> nn.Module:
    """The network trained in the subspace by BFGS, which needs two passes for each of its large batches."""
    model = copy.deepcopy(model).train()
    optimiser = ProjectedBFGS(model, space)
    for _, x, y in setting.batches(setting.again, min(LARGE_BATCH, len(setting.case.images))):

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimiser.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            return loss

        optimiser.step(closure)
    return model


def measure(setting: Setting, form: str, dims: list[int]) -> Iterator[Row]:
    """The rows of one network."""
    model = built(setting, form)
    params = sum(parameter.numel() for parameter in model.parameters())
    told: Row = {"network": setting.network, "form": form, "params": params, "seed": setting.seed}

    def row(method: str, epochs: float, made: nn.Module, seconds: float, dim: int | None = None) -> Row:
        top1 = setting.case.accuracy(setting.renewed(made))
        return {**told, "method": method, "dim": dim, "epochs": epochs, "top1": top1, "seconds": seconds}

    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        whole, half = trained(setting, model, Recorder(model, folder))
        seconds = time.perf_counter() - begin
        yield row("full", setting.epochs, whole, seconds)
        yield row("half", setting.epochs / 2, half, seconds / 2)
        checkpoints = Checkpoints(model, folder)
        space = averaging(model, checkpoints)
        average = copy.deepcopy(model)
        ProjectedSGD(average, space)  # which sets it to the mean
        yield row("average", setting.epochs / 2, average, seconds / 2)
        epochs = setting.epochs / 2 + setting.again
        yield row("averaging, P-SGD", epochs, *best_sgd(setting, model, space), space.dim)
        for dim in dims:
            space = dldr(model, checkpoints, dim)
            yield row("dldr, P-SGD", epochs, *best_sgd(setting, model, space), dim)
            begin = time.perf_counter()
            bfgs = projected_bfgs(setting, model, space)
            yield row("dldr, P-BFGS", epochs, bfgs, time.perf_counter() - begin, dim)


def main() -> None:
    """Run the benchmark."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--networks", nargs="+", default=["lenet5", "resnet8"], choices=["lenet5", "resnet8"])
    options.add_argument("--forms", nargs="+", default=["dense", "tucker2", "tensor_train"], help="dense, or formats")
    options.add_argument("--dims", nargs="+", type=int, default=[10, 20, 40, 80], help="numbers of directions")
    options.add_argument("--epochs", type=float, default=20.0, help="of the whole training")
    options.add_argument("--again", type=float, default=8.0, help="epochs in the subspace")
    options.add_argument("--checkpoints", type=int, default=81)
    options.add_argument("--samples", type=int, help="number of training images")
    options.add_argument("--seeds", nargs="+", type=int, default=[0], help="seeds of the weights and the order")
    arguments = options.parse_args()
    start(arguments)
    if arguments.quick:
        arguments.seeds, arguments.dims = arguments.seeds[:1], [10, 40]
        arguments.epochs, arguments.again = min(arguments.epochs, 12.0), min(arguments.again, 6.0)
        arguments.samples = min(arguments.samples or 2000, 2000)
    module = networks()
    rows: list[Row] = []
    for network in arguments.networks:
        case = Case.of(network, module, arguments.samples, 500 if arguments.quick else 2000)
        for seed in arguments.seeds:
            setting = Setting(
                case=case,
                network=network,
                seed=seed,
                epochs=arguments.epochs,
                again=arguments.again,
                checkpoints=arguments.checkpoints,
            )
            for form in arguments.forms:
                rows += measure(setting, form, arguments.dims)
    report(rows, COLUMNS, "Training in few directions", arguments.json)


if __name__ == "__main__":
    main()
