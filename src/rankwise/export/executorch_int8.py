"""Quantise a captured program to 8 bits with XNNPACK's own quantiser."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .compare import Arguments


def rounded(
    program: torch.export.ExportedProgram, example: Arguments, batches: Sequence[Arguments], dtype: str
) -> torch.export.ExportedProgram:
    """The program rounded to 8 bits between operators, as XNNPACK's kernels compute, with a scale per output channel.

    Args:
        program: of the network.
        example: arguments that it was captured with.
        batches: arguments from which "int8" takes the ranges of activations.
        dtype: "int8" for all that XNNPACK has kernels for; "int8-dynamic" for linear layers only, which find the ranges
            of their inputs at run time.
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
