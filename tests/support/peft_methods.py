"""Strong random adapters of every method that changes weights, made with stock peft."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
from adapter_files import edit_config, read_config
from peft import PeftModel, get_peft_model
from peft_adapters import load_peft
from tiny_models import tiny_model
from torch import Tensor

LINEAR = ("llama", "qwen2", "gemma2")
CONV1D = (*LINEAR, "gpt2")
_TARGETS = {"gpt2": ["c_attn", "c_fc"]}
_DEFAULT_TARGETS = ["q_proj", "v_proj", "down_proj"]
_NORMS = r".*(norm|ln_[12f])"
_TOKENS = list(range(509, 5, -3))


@dataclass(frozen=True)
class Method:
    """How to make one adapter: a class of peft's, its fields, and where peft supports it.

    scale: of the random change of every trained tensor, relative to 1 / sqrt(its last dimension)
    pruned: whether some ranks are cut   added: fields of the configuration that peft does not know
    """

    config: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    archs: tuple[str, ...] = LINEAR
    scale: float = 0.3
    pruned: bool = False
    added: Mapping[str, Any] = field(default_factory=dict)


METHODS: dict[str, Method] = {
    "adalora": Method(
        "AdaLoraConfig", {"init_r": 6, "total_step": 9, "lora_alpha": 20}, CONV1D, 0.8
    ),
    "adalora, pruned": Method("AdaLoraConfig", {"init_r": 6, "total_step": 9}, CONV1D, 2.0, True),
    "vera": Method("VeraConfig", {"r": 16}, CONV1D, 3.0),
    "vera beside biases": Method("VeraConfig", {"r": 16, "bias": "all"}, ("qwen2", "gpt2"), 2.0),
    "pvera": Method("PveraConfig", {"r": 16}, CONV1D, 3.0),
    "loha": Method("LoHaConfig", {"r": 3, "alpha": 12, "alpha_pattern": {"v_proj": 24}}, scale=0.4),
    "loha of full rank": Method("LoHaConfig", {"r": 9, "alpha": 30}, scale=0.6),
    "lokr": Method("LoKrConfig", {"r": 2, "alpha": 6, "rank_pattern": {"v_proj": 3}}),
    "lokr in full": Method("LoKrConfig", {"r": 64, "alpha": 256}),
    "lokr of both factors": Method(
        "LoKrConfig", {"r": 2, "alpha": 8, "decompose_both": True, "decompose_factor": 8}
    ),
    "hra": Method("HRAConfig", {"r": 6}),
    "hra, orthogonal": Method("HRAConfig", {"r": 6, "apply_GS": True}),
    "hra beside a head": Method(
        "HRAConfig", {"r": 6, "modules_to_save": ["lm_head"]}, ("gemma2",), 0.5
    ),
    "peanut": Method("PeanutConfig", {"r": 8}, scale=0.3),
    "peanut, deep": Method(
        "PeanutConfig", {"r": 8, "depth": 2, "act_fn": "gelu", "scaling": 0.5}, scale=0.5
    ),
    "deft": Method("DeftConfig", {"r": 4, "alpha": 6}),
    "deft, qr": Method("DeftConfig", {"r": 4, "decomposition_method": "qr"}, CONV1D),
    "deft, projection only": Method("DeftConfig", {"r": 4, "para": True}),
    "osf": Method("OSFConfig", {"effective_rank": 24}, scale=0.2),
    "osf of half the rank": Method(
        "OSFConfig", {"rank_pattern": {"0.self_attn.v_proj": 32, "q_proj": 0.9}}, scale=0.2
    ),
    "delora": Method("DeloraConfig", {"r": 4, "delora_lambda": 3}),
    "delora with patterns": Method(
        "DeloraConfig", {"r": 4, "rank_pattern": {"q_proj": 2}, "lambda_pattern": {"v_proj": 9}}
    ),
    "miss": Method("MissConfig", {"r": 8}),
    "miss of an uneven rank": Method("MissConfig", {"r": 7}),
    "miss mini": Method("MissConfig", {"r": 8, "mini_r": 4, "init_weights": "mini"}),
    "miss bat": Method("MissConfig", {"r": 8, "init_weights": "bat"}, scale=0.1),
    "vblora": Method(
        "VBLoRAConfig", {"r": 2, "num_vectors": 24, "vector_length": 8}, CONV1D, scale=2.0
    ),
    "vblora of the top weights": Method(
        "VBLoRAConfig",
        {"r": 2, "num_vectors": 24, "vector_length": 8, "save_only_topk_weights": True},
        CONV1D,
        scale=2.0,
    ),
    "gralora": Method("GraloraConfig", {"r": 8, "alpha": 16}, CONV1D),
    "gralora, hybrid": Method(
        "GraloraConfig", {"r": 8, "alpha": 16, "hybrid_r": 3, "gralora_k": 4}, CONV1D
    ),
    "poly": Method("PolyConfig", {"r": 4, "n_skills": 3, "n_splits": 2}, scale=1.0),
    "poly of two tasks": Method(
        "PolyConfig", {"r": 4, "n_tasks": 2}, scale=1.0, added={"task_id": 1}
    ),
    "bdlora": Method(
        "LoraConfig",
        {
            "r": 8,
            "use_bdlora": {
                "target_modules_bd_a": ["down_proj"],
                "target_modules_bd_b": ["q_proj"],
                "nblocks": 2,
                "match_strict": False,
            },
        },
    ),
    "kasa": Method("LoraConfig", {"r": 4, "kasa_config": {}, "use_rslora": True}),
    "boft": Method("BOFTConfig", {"boft_block_size": 8}),
    "boft beside biases": Method(
        "BOFTConfig", {"boft_block_size": 8, "bias": "boft_only"}, ("qwen2",)
    ),
    "boft by the number of blocks": Method(
        "BOFTConfig", {"boft_block_size": 0, "boft_block_num": 16}
    ),
    "fourierft": Method("FourierFTConfig", {"n_frequency": 300}, CONV1D, 8.0),
    "waveft": Method("WaveFTConfig", {"n_frequency": 200}, CONV1D, 0.5),
    "waveft, no transform": Method("WaveFTConfig", {"n_frequency": 200, "use_idwt": False}),
    "c3a": Method("C3AConfig", {"block_size": 16, "block_size_pattern": {"v_proj": 8}}, scale=9.0),
    "frod": Method("FrodConfig", {"progressbar": False}, CONV1D, 4.0),
    "frod beside biases": Method(
        "FrodConfig", {"progressbar": False, "sparse_rate": 0.0, "bias": "all"}, ("qwen2",), 4.0
    ),
    "randlora": Method("RandLoraConfig", {"r": 10, "randlora_alpha": 30}, CONV1D, 0.1),
    "randlora, sparse": Method("RandLoraConfig", {"r": 8, "sparse": True}, scale=0.05),
    "hira": Method("HiraConfig", {"r": 4, "rank_pattern": {"q_proj": 6}}, CONV1D, 1.5),
    "glora": Method("GloraConfig", {"r": 4}),
    "glora of vectors": Method(
        "GloraConfig", {"config_A_B": "vector", "config_C": "vector", "config_D_E": "vector"}
    ),
    "glora of constants": Method(
        "GloraConfig",
        {"config_A_B": "constant", "config_C": "none", "config_D_E": "constant"},
        scale=0.03,
    ),
    "glora beside biases": Method("GloraConfig", {"r": 4, "bias": "all"}, ("qwen2",)),
    "glora of biases": Method(
        "GloraConfig", {"config_A_B": "none", "config_D_E": "vector"}, ("qwen2",)
    ),
    "shira": Method("ShiraConfig", {"r": 3, "random_seed": 1}, scale=3.0),
    "supertuning": Method("SupertuningConfig", {"sparsity": 0.9}, scale=3.0),
    "supertuning with pairs": Method(
        "SupertuningConfig", {"sparsity": 0.9, "r": 3, "lora_alpha": 6}, scale=1.0
    ),
    "tinylora": Method("TinyLoraConfig", {"r": 2, "u": 6}, CONV1D, 1.0),
    "tinylora, tied": Method("TinyLoraConfig", {"r": 2, "u": 6, "weight_tying": 0.6}, scale=1.0),
    "unilora": Method("UniLoraConfig", {"r": 3, "save_indices": True}, CONV1D, 9.0),
    "ia3": Method("IA3Config", {"feedforward_modules": r".*\.(down_proj|c_fc)"}, CONV1D, 4.0),
    "ia3 of outputs": Method("IA3Config", {"feedforward_modules": []}, CONV1D, 0.5),
    "beft": Method("BeftConfig", scale=2.0),
    "oft": Method("OFTConfig", {"oft_block_size": 8}, scale=0.9),
    "oft of few blocks": Method("OFTConfig", {"oft_block_size": 0, "r": 5}, scale=0.9),
    "oft, one block": Method("OFTConfig", {"oft_block_size": 8, "block_share": True}, scale=0.9),
    "oft, exact": Method("OFTConfig", {"oft_block_size": 8, "use_cayley_neumann": False}),
    "oft of three terms": Method("OFTConfig", {"oft_block_size": 4, "num_cayley_neumann_terms": 3}),
    "oft of nine terms": Method("OFTConfig", {"oft_block_size": 4, "num_cayley_neumann_terms": 9}),
    "oft, constrained": Method("OFTConfig", {"oft_block_size": 8, "coft": True, "eps": 0.6}),
    "oft with biases": Method("OFTConfig", {"oft_block_size": 8, "bias": "all"}, scale=0.9),
    "road 1": Method("RoadConfig", {"group_size": 16}, scale=2.0),
    "road 2": Method("RoadConfig", {"variant": "road_2", "group_size": 8}, scale=2.0),
    "road 4": Method("RoadConfig", {"variant": "road_4", "group_size": 32}, scale=2.0),
    "norms": Method("LNTuningConfig", {"target_modules": _NORMS}, CONV1D, 2.0),
    "other modules as norms are": Method(
        "LNTuningConfig",
        {"target_modules": r".*\.0\.(mlp|self_attn\.k_proj)"},
        CONV1D,
    ),
    "tokens": Method(
        "TrainableTokensConfig", {"target_modules": None, "token_indices": _TOKENS}, CONV1D, 0.3
    ),
    "tokens of the head": Method(
        "TrainableTokensConfig", {"target_modules": ["lm_head"], "token_indices": [3, 7]}, CONV1D
    ),
    "ia3 and saved modules": Method(
        "IA3Config",
        {"feedforward_modules": [], "modules_to_save": ["lm_head", "norm"]},
        scale=0.1,
    ),
    "saved modules are no targets": Method(
        "HRAConfig", {"target_modules": "all-linear", "modules_to_save": ["0.mlp"]}, scale=0.1
    ),
}


def save_method(
    path: Path, arch: str, name: str, seed: int = 0, *, strength: float = 1.0, **changes: Any
) -> Path:
    """Writes the adapter of `METHODS[name]` for `tiny_model(arch)` as peft saves it.

    strength: of the random change; with 0 it is as peft starts to train it
    changes: fields in place of the method's own
    """
    method = METHODS[name]
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        fields = {"target_modules": _TARGETS.get(arch, _DEFAULT_TARGETS)} | dict(method.fields)
        config = getattr(peft, method.config)(task_type="CAUSAL_LM", **(fields | changes))
        adapted = get_peft_model(tiny_model(arch), config)
        _redraw(adapted, method.scale * strength)
        if method.pruned:
            _prune(adapted)
        adapted.save_pretrained(str(path))
    return edit_config(path, **method.added)


@torch.inference_mode()
def method_logits(arch: str, path: Path, ids: Tensor) -> Tensor:
    """Logits [batch, tokens, vocabulary] of stock peft with the adapter on `tiny_model(arch)`."""
    config = read_config(path)
    inputs = {}
    if config["peft_type"] == "POLY":
        inputs["task_ids"] = torch.full((len(ids),), config.get("task_id", 0))
    adapted = load_peft(tiny_model(arch), path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's sparse tensors are in beta
        logits: Tensor = adapted(input_ids=ids, use_cache=False, **inputs).logits
    return logits


def _redraw(adapted: PeftModel, scale: float) -> None:
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            noise = torch.randn_like(parameter) / parameter.shape[-1] ** 0.5
            parameter.data += noise * scale


def _prune(adapted: PeftModel) -> None:
    """Cuts ranks as AdaLoRA's schedule does, in one module all of them."""
    modules = [name for name, _ in adapted.named_parameters() if name.endswith("lora_E.default")]
    adapted.peft_config["default"].rank_pattern = {
        name.removeprefix("base_model.model."): [(rank + at) % 3 > 0 < at for rank in range(6)]
        for at, name in enumerate(modules)
    }
