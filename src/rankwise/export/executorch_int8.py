"""A captured program in 8 bits, by XNNPACK's own quantiser."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .compare import Arguments


def rounded(
    program: torch.export.ExportedProgram, example: Arguments, batches: Sequence[Arguments], dtype: str
) -> torch.export.ExportedProgram:
    """The program with operators between which numbers are rounded to 8 bits, as XNNPACK's kernels compute them.

    Args:
        program: of the network.
        example: arguments it was captured with.
        batches: what `int8` takes the ranges of activations from.
        dtype: "int8" for all that XNNPACK has kernels for, "int8-dynamic" for linear layers, whose inputs' ranges are
            found whenever they run.

    Returns:
        The program; weights have a scale for each output channel.
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    how = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dtype == "int8-dynamic")
    with torch.no_grad():
        observed = prepare_pt2e(program.module(), XNNPACKQuantizer().set_global(how))
        for args, kwargs in batches:
            observed(*args, **kwargs)
        return torch.export.export(convert_pt2e(observed), *example)
