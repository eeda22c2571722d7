"""transformers' own `save_pretrained` and `from_pretrained` for compressed networks: importing this is all.

Example:
    >>> import rankwise.integrations.transformers  # doctest: +SKIP
    >>> small.save_pretrained("small/")  # doctest: +SKIP
    >>> small = transformers.AutoModelForCausalLM.from_pretrained("small/")  # doctest: +SKIP
"""

from __future__ import annotations

from ..inputs.torchvision_shim import allow_torchvision
from ..network.hub import write_by

allow_torchvision()  # transformers imports it for some networks
try:
    from transformers import AutoConfig, PreTrainedModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.quantizers.auto import (
        AUTO_QUANTIZER_MAPPING,
        register_quantization_config,
        register_quantizer,
    )

    from .ordinary import ordinary
    from .rebuilding import Rebuilding, Structure
    from .written import MODEL_TYPE, Family, copy_tokenizer, is_private, save, write_config
except ImportError as error:
    raise ImportError(
        "rankwise.integrations.transformers needs transformers 5 or newer: pip install 'rankwise[transformers]'"
    ) from error

if MODEL_TYPE not in CONFIG_MAPPING:
    AutoConfig.register(MODEL_TYPE, Family)
if MODEL_TYPE not in AUTO_QUANTIZER_MAPPING:
    register_quantization_config(MODEL_TYPE)(Structure)
    register_quantizer(MODEL_TYPE)(Rebuilding)
write_by(PreTrainedModel, save)

__all__ = ["copy_tokenizer", "is_private", "ordinary", "save", "write_config"]
