"""README's table of methods: what serves each, how exactly, what an adapter takes and costs.

Differences and bytes are of results/fidelity.json, speeds of results/methods.json.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

Results = Mapping[str, Any]
DTYPES = ("bfloat16", "float32")
HEAD = (
    "method (`peft_type`, field)",
    "|served as",
    "worst difference",
    "bytes",
    *(f"{dtype}: 1 / 32 adapters" for dtype in DTYPES),
)


@dataclass(frozen=True)
class Row:
    """fidelity: the row of its results   families: of the results of speed, by what they are called

    size: in place of the bytes that were measured, what they depend on
    base: on which the families' speeds were measured
    """

    method: str
    served: str
    fidelity: str
    families: Mapping[str, str] = field(default_factory=dict)
    size: str = ""
    base: str = "qwen2.5-0.5b-shapes"


_MIX = "all methods"
_LORA = {"": "low rank 16"}
ROWS = (
    Row(
        "LORA: any rank, rsLoRA, rank and alpha patterns, all ways to choose targets, embeddings, "
        "heads, packed projections, Conv1D; unconverted PiSSA and OLoRA",
        "low rank (2r for the last two)",
        "LORA",
        _LORA,
    ),
    Row(
        "`target_parameters`: fused experts, routers, weights of linears and embeddings; and files "
        "from before transformers 5, with a pair for each expert",
        "a low-rank pair for each expert, rows sorted by expert and adapter; routers as replaced "
        "parameters",
        "target_parameters",
        {"rank 16 on 64 experts": "experts 16"},
        size="a pair for each expert",
        base="64-experts",
    ),
    Row(
        "`use_dora`, `lora_bias`, `bias`, `kasa_config`, `use_bdlora`",
        "low rank, output scale and shift",
        "use_dora, lora_bias, bias, kasa_config, use_bdlora",
        {"": "dora 16"},
    ),
    Row(
        "`alora_invocation_tokens`",
        "low rank from the invocation on; what is before it is the base's, also in the cache",
        "alora_invocation_tokens",
        _LORA,
    ),
    Row(
        "`modules_to_save`, `trainable_token_indices`, TRAINABLE_TOKENS, LN_TUNING, BEFT",
        "replaced parameters, rows and biases; a whole head takes 272 MB",
        "saved modules, tokens, norms, biases",
        {"norms": "norms", "tokens": "tokens", "biases": "biases"},
    ),
    Row(
        "IA3 on k, v and down, OFT, ROAD, BOFT",
        "scales, rotations of the input, rotations of output pairs",
        "IA3, OFT, ROAD, BOFT",
        {"IA3": "ia3", "ROAD": "road", "OFT": "oft"},
    ),
    Row(
        "ADALORA, VERA, PVERA, LOHA, HRA, PEANUT, DEFT, OSF, DELORA, MISS, VBLORA, GRALORA, POLY, "
        "TINYLORA, UNILORA",
        "low rank, some with the base's weight at load; dense where that is smaller (VERA, PVERA, "
        "OSF)",
        "low rank",
        {"rank 16": "low rank 16", "rank 256 on q and v": "low rank 256"},
    ),
    Row("LOKR", "Kronecker factors", "LOKR", {"": "kronecker"}),
    Row("SHIRA, SUPERTUNING", "sparse delta", "sparse", {"as many values as rank 16": "sparse"}),
    Row(
        "FOURIERFT, WAVEFT, C3A, RANDLORA, HIRA, GLORA, FROD, MISS `bat`",
        "dense delta: exact, at the cost of a whole layer each",
        "dense",
        {"on q and v": "dense", "on all": "dense, all"},
    ),
    Row(
        "PROMPT_TUNING, P_TUNING, MULTITASK_PROMPT_TUNING, CPT",
        "virtual tokens before the prompt",
        "virtual tokens",
        {"": "soft prompt"},
    ),
    Row(
        "PREFIX_TUNING, CARTRIDGE",
        "KV pages that all requests of a version share, beside its bytes while requests use them",
        "prefixes",
        {"": "prefix"},
    ),
    Row(
        "ADAPTION_PROMPT on llama, mistral, gpt2",
        "attention to learned keys beside the model's own",
        "ADAPTION_PROMPT",
        {"": "adaption prompt"},
    ),
    Row(
        "AdapterHub's bottleneck adapters (Pfeiffer, Houlsby, parallel) on llama, mistral, qwen2, "
        "qwen3, gemma2, gpt2",
        "two small layers beside a sublayer, against AdapterHub's own library",
        "bottlenecks",
        {"Pfeiffer": "bottleneck", "Houlsby": "bottlenecks"},
    ),
)
_LABELS = {"r 16": "rank 16", "DoRA, r 16": "DoRA of rank 16", "Pfeiffer, 56": "Pfeiffer of 56"}


def cells(row: Row, fidelity: Results, methods: Results) -> tuple[str, ...]:
    """The table's line for a row, by the columns of HEAD."""
    measured = fidelity["rows"][row.fidelity]
    speeds = (speed(row, families_of(row.base, dtype, methods)) for dtype in DTYPES)
    size = row.size or ", ".join(sizes(measured["bytes"]))
    worst = f"{measured['worst_difference']:.1e}".replace("e-0", "e-")
    return row.method, row.served, worst, size, *speeds


def families_of(base: str, dtype: str, methods: Results) -> Results:
    """The families whose speed was measured on a base."""
    found: Results = methods["models"].get(f"{base}, {dtype}", {"families": {}})["families"]
    return found


def sizes(found: Mapping[str, int]) -> Iterator[str]:
    """The bytes of adapters, those of one size together."""
    for text, group in groupby(sorted(found, key=lambda name: found[name]), lambda n: mb(found[n])):
        yield f"{', '.join(_LABELS.get(name, name) for name in group)}: {text}"


def mb(count: int) -> str:
    """In megabytes."""
    return f"{count / 1e6:.0f} MB" if count > 1e7 else f"{count / 1e6:.2g} MB"


def speed(row: Row, families: Results) -> str:
    """Of a step with one adapter and with as many as there are rows, beside the base's."""
    told = []
    for name, family in row.families.items():
        if family in families:
            one, many = (families[family]["sides"][side] for side in ("one", "distinct"))
            some = f" ({many['distinct']})" if many["distinct"] < 32 else ""
            ratios = f"{one['to_base']:.2f} / {many['to_base']:.2f}{some}"
            told.append(f"{name}: {ratios}" if name else ratios)
    return ", ".join(told) or "–"


def mixes(methods: Results) -> Iterator[str]:
    """A step in which all methods meet, by dtype."""
    for dtype in DTYPES:
        mix = families_of(Row.base, dtype, methods).get(_MIX)
        if mix is not None:
            side = mix["sides"]["mix"]
            yield f"{side['to_base']:.2f} in {dtype} ({side['distinct']} adapters)"


def measured_on(methods: Results) -> str:
    """The machine of each dtype's figures, by its last family."""
    return "; ".join(
        f"{dtype}: {_machine(families_of(Row.base, dtype, methods))}" for dtype in DTYPES
    )


def _machine(families: Results) -> str:
    last = max((entry["machine"] for entry in families.values()), key=lambda m: m["date"])
    vectors = f" with {last['simd']}" if "simd" in last else ""
    return f"{last['date']}, {last['processor']}{vectors}"
