"""`rankwise roofline`: describe this device in four numbers, as a file that plans can be made for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ..names import check_engine_name
from .command import command
from .options.base import Telling, plain
from .options.measuring import EngineName, Threads

DeviceOut = Annotated[Path, plain("-o --out FILE", "The YAML file to write.")]


@command
def roofline(
    tell: Telling, device_file: DeviceOut = Path("device.yaml"), engine: EngineName = "torch", threads: Threads = 1
) -> None:
    """Measure peak, bandwidth, tile and overhead of this device on an engine.

    Example: [bold]rankwise roofline --engine onnxruntime -o cpu.yaml[/bold]

    [bold]--engine roofline:cpu.yaml[/bold] then plans without the device. For a device elsewhere, write its numbers
    into such a file.
    """
    with tell.output(writes=[device_file]) as out:
        from dataclasses import asdict

        check_engine_name(engine, where=f"--engine {engine!r}: ")
        from ..latency import get_engine
        from ..latency.roofline_fit import measured_device

        with out.step(f"measuring in {engine}"):
            device = measured_device(get_engine(engine, threads))
        device.save(device_file)
        out.say(
            f"{device.name}: {device.peak / 1e9:.3g} GMAC/s, {device.bandwidth / 1e9:.3g} GB/s, channels in multiples "
            f"of {device.tile}, {device.overhead * 1e6:.3g} us for each operator"
        )
        out.say(f"roofline: {device_file} (then: rankwise plan ... --engine roofline:{device_file})")
        out.result("roofline", {"device_file": device_file, "device": asdict(device)})
