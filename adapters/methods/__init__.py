"""From an adapter's files to the operations that the engine computes: one module a method family.

Each family has the same verb, `lower(checkpoint, tensors, base)`, and is named in one table here.
"""

from collections.abc import Callable, Mapping

from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.methods import (
    adalora,
    adaption_prompt,
    beft,
    boft,
    bottleneck,
    c3a,
    deft,
    delora,
    frod,
    glora,
    gralora,
    hira,
    hra,
    ia3,
    ln_tuning,
    loha,
    lokr,
    lora,
    miss,
    oft,
    osf,
    peanut,
    poly,
    prefix,
    prompt,
    randlora,
    road,
    shira,
    spectral,
    supertuning,
    tinylora,
    trained_tokens,
    unilora,
    vblora,
    vera,
)
from weft.adapters.methods.fields import invalid
from weft.adapters.plan import AdapterPlan

Lower = Callable[[Checkpoint, Mapping[str, Tensor], BaseModules], AdapterPlan]

METHODS: Mapping[str, Lower] = {
    "ADALORA": adalora.lower,
    "ADAPTION_PROMPT": adaption_prompt.lower,
    "BEFT": beft.lower,
    "BOFT": boft.lower,
    "C3A": c3a.lower,
    "CARTRIDGE": prefix.lower,
    "CPT": prompt.lower,
    "DEFT": deft.lower,
    "DELORA": delora.lower,
    "FOURIERFT": spectral.lower_fourier,
    "FROD": frod.lower,
    "GLORA": glora.lower,
    "GRALORA": gralora.lower,
    "HIRA": hira.lower,
    "HRA": hra.lower,
    "IA3": ia3.lower,
    "LN_TUNING": ln_tuning.lower,
    "LOHA": loha.lower,
    "LOKR": lokr.lower,
    "LORA": lora.lower,
    "MISS": miss.lower,
    "MULTITASK_PROMPT_TUNING": prompt.lower,
    "OFT": oft.lower,
    "OSF": osf.lower,
    "PEANUT": peanut.lower,
    "POLY": poly.lower,
    "PREFIX_TUNING": prefix.lower,
    "PROMPT_TUNING": prompt.lower,
    "PVERA": vera.lower_probabilistic,
    "P_TUNING": prompt.lower,
    "RANDLORA": randlora.lower,
    "ROAD": road.lower,
    "SHIRA": shira.lower,
    "SUPERTUNING": supertuning.lower,
    "TINYLORA": tinylora.lower,
    "TRAINABLE_TOKENS": trained_tokens.lower,
    "UNILORA": unilora.lower,
    "VBLORA": vblora.lower,
    "VERA": vera.lower,
    "WAVEFT": spectral.lower_wavelet,
}

_NEVER = {
    "ADAMSS": "which outputs it changes is not in the file: a clustering of the base gives them",
    "LILY": "its router averages over the whole batch, so answers would depend on other requests",
    "PSOFT": "it turns singular vectors of the base, which are not in the file and have no sign",
    "SHADOW": "it is a second model with a cache of its own",
    "XLORA": "it mixes other adapters by weights that an extra pass of the whole model computes",
}


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """The plan of a version, in float32 on the host; `tensors` as `read_tensors` gives them.

    Raises AdapterInvalid for whatever would not be computed exactly as the adapter was trained.
    """
    method = checkpoint.config.get("peft_type")
    if method is None and "config" in checkpoint.config:
        return bottleneck.lower(checkpoint, tensors, base)
    if not isinstance(method, str):
        raise invalid(
            "peft_type", "is missing: only adapters in PEFT's or AdapterHub's format are served"
        )
    if method not in METHODS:
        reason = _NEVER.get(method, f"only {', '.join(METHODS)} is served")
        raise invalid("peft_type", f"{method!r} is not served: {reason}")
    return METHODS[method](checkpoint, tensors, base)
