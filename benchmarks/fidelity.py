"""How far from peft is each method, and what does an adapter take? The README's table of methods.

    make fidelity

Difference: the largest of any token's log-probability, over 16 greedy tokens in mixed batches of
tiny models, with the prompts chunked. Bytes: of the lowered adapter in bfloat16 for Qwen2.5-0.5B's
shapes, made by peft with its own defaults on all linear layers where a row names nothing else.
"""

import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import adapterhub
import machine
import peft
import torch
from adapted_model import AdaptedModel, lower_folder
from adapter_files import read_config
from engines import run, store_of, tiny_engine
from every_method import every_method
from exactness import Question, answers_of
from forward_loops import LoopOracle
from peft_adapters import save_lora
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen2Config

from weft.adapters.base import KVShape

ARCHITECTURES = ("llama", "qwen2", "gemma2", "gpt2")
EXPERTS = ("mixtral", "qwen3_moe", "gpt_oss")
NEW_TOKENS = 16
LAYERS = 24
SHAPES = {
    "vocab_size": 1024,  # no adapter here depends on it
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 1,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ATTENTION = {"model.layers.0.self_attn": KVShape(2, 64, 64)}
FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures" / "adapterhub"
console = Console(width=160)

Fields = Mapping[str, Any]
Usual = Mapping[str, tuple[str, Fields]]


@dataclass(frozen=True)
class Row:
    """specimens: names in `every_method`, or all of a peft_type that no other row names

    usual: adapters whose bytes are told, by their names: a class of peft's and its fields
    """

    specimens: tuple[str, ...]
    usual: Usual = field(default_factory=dict)


def _defaults(*configs: str, **fields: Any) -> dict[str, tuple[str, Fields]]:
    return {name.removesuffix("Config"): (name, fields) for name in configs}


_NORMS = {"target_modules": r".*norm"}
_FEED = {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
_VIRTUAL = {"target_modules": None, "num_virtual_tokens": 20}
ROWS: dict[str, Row] = {
    "LORA": Row(("LORA",), {"r 16": ("LoraConfig", {"r": 16})}),
    "target_parameters": Row(("experts",)),
    "use_dora, lora_bias, bias, kasa_config, use_bdlora": Row(
        ("dora", "dora and biases", "bias of B", "kasa", "bdlora"),
        {"DoRA, r 16": ("LoraConfig", {"r": 16, "use_dora": True})},
    ),
    "alora_invocation_tokens": Row(("alora",), {"r 16": ("LoraConfig", {"r": 16})}),
    "saved modules, tokens, norms, biases": Row(
        (
            "saved head",
            "saved norms",
            "saved embedding",
            "trained tokens",
            "TRAINABLE_TOKENS",
            "LN_TUNING",
            "BEFT",
        ),
        {
            "100 tokens": (
                "TrainableTokensConfig",
                {"target_modules": None, "token_indices": list(range(100))},
            ),
            "norms": ("LNTuningConfig", _NORMS),
            "biases": ("BeftConfig", {}),
        },
    ),
    "IA3, OFT, ROAD, BOFT": Row(
        ("IA3", "OFT", "ROAD", "BOFT"),
        {"IA3": ("IA3Config", _FEED), **_defaults("OFTConfig", "RoadConfig", "BOFTConfig")},
    ),
    "low rank": Row(
        (
            "ADALORA",
            "VERA",
            "PVERA",
            "LOHA",
            "HRA",
            "PEANUT",
            "DEFT",
            "OSF",
            "DELORA",
            "MISS",
            "VBLORA",
            "GRALORA",
            "POLY",
            "TINYLORA",
            "UNILORA",
        ),
        {
            "AdaLora": ("AdaLoraConfig", {"total_step": 9}),
            **_defaults("HRAConfig", "PeanutConfig", "DeftConfig", "DeloraConfig", "MissConfig"),
            **_defaults("GraloraConfig", "PolyConfig", "TinyLoraConfig", "LoHaConfig"),
            **_defaults("VeraConfig", "PveraConfig", "OSFConfig"),
            "VBLoRA of 128": ("VBLoRAConfig", {"vector_length": 128}),
            "UniLora": ("UniLoraConfig", {"save_indices": True}),
        },
    ),
    "LOKR": Row(("LOKR",), _defaults("LoKrConfig")),
    "sparse": Row(("SHIRA", "SUPERTUNING"), _defaults("ShiraConfig", "SupertuningConfig")),
    "dense": Row(
        (
            "FOURIERFT",
            "WAVEFT",
            "C3A",
            "RANDLORA",
            "HIRA",
            "GLORA",
            "FROD",
            "miss bat",
            "loha of full rank",
        ),
        {
            "all linear layers": ("FourierFTConfig", {}),
            "q and v": ("FourierFTConfig", {"target_modules": ["q_proj", "v_proj"]}),
        },
    ),
    "virtual tokens": Row(
        ("PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT"),
        {"20 tokens": ("PromptTuningConfig", _VIRTUAL)},
    ),
    "prefixes": Row(
        ("PREFIX_TUNING", "CARTRIDGE"), {"20 tokens": ("PrefixTuningConfig", _VIRTUAL)}
    ),
    "ADAPTION_PROMPT": Row(
        ("ADAPTION_PROMPT",),
        {"10 rows": ("AdaptionPromptConfig", {"adapter_len": 10, "adapter_layers": 1})},
    ),
    "bottlenecks": Row(("bottleneck",), {"Pfeiffer, 56": ("Pfeiffer", {})}),
    "blends": Row(("several",)),
}


def main() -> None:
    """Measures, prints the table and writes results/fidelity.json."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found: dict[str, float] = defaultdict(float)
    for arch in track((*ARCHITECTURES, *EXPERTS, "AdapterHub"), "against peft", console=console):
        for name, difference in differences(arch):
            found[name] = max(found[name], difference)
    rows = {
        name: {
            "worst_difference": found[name],
            "bytes": {label: stored_bytes(*usual) for label, usual in row.usual.items()},
        }
        for name, row in track(ROWS.items(), "bytes", console=console)
    }
    show(rows)
    written = machine.write_results("fidelity", {"new_tokens": NEW_TOKENS, "rows": rows})
    console.print(f"written: {written}")


# ---- differences


def differences(arch: str) -> Iterator[tuple[str, float]]:
    """The row and the difference of every answer on an architecture."""
    if arch == "AdapterHub":
        yield from library_differences()
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        questions = [*(experts(arch, folder) if arch in EXPERTS else all_methods(arch, folder))]
        store = store_of(folder)
        paths = {path for _, question in questions for path, _ in question.parts}
        digests = {path: store.put(path) for path in paths}
        limits = {"max_num_batched_tokens": 64, "max_num_seqs": 32, "adapter_memory": 64 << 20}
        with tiny_engine(folder, arch, **limits) as engine:
            requests = [q.request(str(i), digests) for i, (_, q) in enumerate(questions)]
            answers = answers_of(run(engine, *requests))
        for index, (row, question) in enumerate(questions):
            answer = answers[str(index)]
            assert answer.tokens == question.answer.tokens, question.adapter
            yield row, float((answer.logprobs - question.answer.logprobs).abs().max())


def all_methods(arch: str, folder: Path) -> Iterator[tuple[str, Question]]:
    """Of every specimen, all questions whose choices are clear, with their row."""
    random = Random(arch)
    for name, specimen in every_method(arch).items():
        for question in specimen.questions(folder / "adapters" / name, random, NEW_TOKENS):
            if question.parts:
                yield row_of(name, question), question


def experts(arch: str, folder: Path) -> Iterator[tuple[str, Question]]:
    """LoRA on the experts, of which peft saves both parameters."""
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    path = save_lora(folder / "experts", arch, target_modules=[], target_parameters=parameters, r=4)
    oracle, random = LoopOracle.of(arch, path), Random(arch)
    prompts = [tuple(random.randrange(5, 512) for _ in range(16)) for _ in range(8)]
    for question in oracle.questions(prompts, NEW_TOKENS):
        yield "target_parameters", question


def library_differences() -> Iterator[tuple[str, float]]:
    """Of bottleneck adapters from the logits that AdapterHub's library computed."""
    expected = load_file(FIXTURES / "expected.safetensors")
    for folder in sorted(path.parent for path in FIXTURES.glob("*/adapter.safetensors")):
        arch = read_config(folder)["model_type"]
        base = AutoModelForCausalLM.from_pretrained(FIXTURES / arch, attn_implementation="eager")
        logits = AdaptedModel(base.eval(), [folder]).logits(expected["ids"][None], [0])[0]
        yield "bottlenecks", float((logits - expected[folder.name]).abs().max())


def row_of(name: str, question: Question) -> str:
    """The row of a specimen: the one that has its name, or else its peft_type."""
    method = read_config(question.parts[0][0]).get("peft_type", "bottleneck")
    whole = len(question.parts) == 1 and question.parts[0][1] == 1
    keys = (name, method) if whole else ("several",)
    return next(row for key in keys for row, one in ROWS.items() if key in one.specimens)


# ---- bytes


def stored_bytes(config: str, fields: Fields) -> int:
    """Of an adapter of all layers on the device, from one that peft makes for one layer."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "adapter"
        llama = config == "AdaptionPromptConfig"
        if config == "Pfeiffer":
            adapterhub.save_bottleneck(folder, "qwen2", "pfeiffer", factor=16, **SHAPES)
        else:
            save(folder, config, fields, shaped(llama=llama))
        plan = lower_folder(folder, shaped(llama=llama).bfloat16(), ATTENTION)
    size = dict.fromkeys(plan.ops, 0)
    for module, tensor, dtype in plan.stored(torch.bfloat16):
        size[module] += tensor.numel() * dtype.itemsize
    return sum(count * (LAYERS if ".layers." in module else 1) for module, count in size.items())


def save(folder: Path, config: str, fields: Fields, base: PreTrainedModel) -> None:
    """A random adapter as peft saves it."""
    targets = {} if config == "AdaptionPromptConfig" else {"target_modules": LINEARS}
    given = {k: v for k, v in (targets | dict(fields)).items() if v is not None}
    adapted = peft.get_peft_model(base, getattr(peft, config)(task_type="CAUSAL_LM", **given))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.02
    adapted.save_pretrained(str(folder))


def shaped(*, llama: bool = False) -> PreTrainedModel:
    """One layer of Qwen2.5-0.5B's shapes; of llama's class for what peft supports there only."""
    torch.manual_seed(0)
    config = (LlamaConfig if llama else Qwen2Config)(**SHAPES)
    return AutoModelForCausalLM.from_config(config).eval()


# ---- the table


def show(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints one line for each row."""
    table = Table("method", "worst difference", "bytes on the device")
    for name, row in rows.items():
        sizes = sorted(row["bytes"].items(), key=lambda item: item[1])
        told = ", ".join(f"{label} {_megabytes(size)}" for label, size in sizes)
        table.add_row(name, f"{row['worst_difference']:.1e}", told)
    console.print(table)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB" if count > 1e7 else f"{count / 1e6:.2g} MB"


if __name__ == "__main__":
    main()
