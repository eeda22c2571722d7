"""`rankwise doctor`: is everything here that Rankwise needs?"""

from __future__ import annotations

from dataclasses import asdict

from .command import command
from .options.base import Telling


@command
def doctor(tell: Telling) -> None:
    """Check this machine: versions, extras and what each is for, engines, devices, and a self-test of some seconds.

    Example: [bold]rankwise doctor[/bold]

    The self-test compresses a small network, stores and loads it, and runs it in every engine that is here but
    compile. Exit code 0 if all of it works. Extras that are missing are no failure: each line says what it is for and
    how to install it.
    """
    with tell.output() as out:
        with out.step("looking around"):
            from ..describe import environment
            from .self_test import self_test
            from .tables import doctor_tables

            versions, extras, engines = environment.versions(), environment.extras(), environment.engines()
            devices = environment.devices()
        for table in doctor_tables(versions, extras, engines):
            out.show(table)
            out.say("")
        for device in devices:
            out.say(device)
        tests = []
        for done, seconds in self_test():
            out.say(f"self-test: {done}: ok ({seconds:.1f} s)")
            tests.append({"done": done, "seconds": seconds})
        out.result(
            "doctor",
            {
                "versions": versions,
                "extras": [{**asdict(each), "fix": each.fix} for each in extras],
                "engines": [asdict(each) for each in engines],
                "devices": devices,
                "self_test": tests,
            },
        )
