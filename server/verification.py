"""The same prompts through a yardstick and through the engine, in float32, token for token.

The yardstick is stock peft, or for AdapterHub's adapters a plain computation of their formulas. It
runs one prompt at a time, by whole forwards without a cache: nothing of the engine is in its way.
"""

import contextlib
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from weft.adapters.blend import alone
from weft.adapters.checkpoint import Checkpoint, read_checkpoint
from weft.adapters.store import Store
from weft.adapters.tenancy import TenantContext
from weft.server import adapterhub
from weft.server.engine import drive, hardware, weights
from weft.server.engine.batch import StepBatch
from weft.server.engine.canary import CANARY_TOKENS
from weft.server.engine.engine import Engine
from weft.server.engine.messages import EngineConfig, Generate, Sampling
from weft.server.engine.model import ModelHost
from weft.server.engine.step_plan import StepPlan

Prompt = tuple[int, ...]
_MULTITASK = ("MULTITASK_PROMPT_TUNING", "POLY")


class PeftFailed(Exception):
    """peft itself could not load or run the adapter; the message is peft's."""


@dataclass(frozen=True)
class Compared:
    """One prompt's greedy tokens from both sides.

    difference: the largest between their logits, up to the first token that differs
    """

    expected: tuple[int, ...]
    actual: tuple[int, ...]
    difference: float

    @property
    def equal(self) -> int:
        """How many tokens agree before the first that does not."""
        pairs = enumerate(zip(self.expected, self.actual, strict=True))
        return next((index for index, (a, b) in pairs if a != b), len(self.expected))


def verify_adapter(
    adapter: Path, base: Path, prompts: Sequence[Prompt], max_tokens: int, device: str
) -> list[Compared]:
    """Greedy continuations of every prompt by both sides, compared.

    Raises AdapterInvalid or ModelUnsupported where weft would refuse, PeftFailed where peft fails.
    """
    actual = _run_weft(adapter, base, prompts, max_tokens, device)
    expected = _run_yardstick(adapter, base, prompts, max_tokens, device)
    return [compare(theirs, ours) for theirs, ours in zip(expected, actual, strict=True)]


def yardstick(adapter: Path) -> str:
    """What an adapter's answers are compared with, in words; raises AdapterInvalid."""
    if not read_checkpoint(adapter).from_adapterhub:
        return f"peft {version('peft')}"
    return (
        "a plain PyTorch computation of AdapterHub's formulas, one prompt at a time (peft does not "
        "read this format; weft's tests hold that computation against AdapterHub's own library)"
    )


def compare(expected: Tensor, actual: Tensor) -> Compared:
    """Of logits `[tokens, vocabulary]` from both sides."""
    theirs, ours = (tuple(logits.argmax(-1).tolist()) for logits in (expected, actual))
    shared = Compared(theirs, ours, 0.0).equal + 1
    difference = (expected[:shared] - actual[:shared]).abs().max().item()
    return Compared(theirs, ours, difference)


@torch.inference_mode()
def _run_yardstick(
    adapter: Path, base: Path, prompts: Sequence[Prompt], max_tokens: int, device: str
) -> list[Tensor]:
    """Logits `[max_tokens, vocabulary]` for each prompt's greedy continuation, one at a time."""
    model = weights.load_weights(
        base,
        weights.read_config(base),
        dtype=torch.float32,
        device=hardware.choose_device(device),
        progress=lambda stage, done, total: None,
    )
    checkpoint = read_checkpoint(adapter)
    if checkpoint.from_adapterhub:
        adapterhub.attach(model, checkpoint)
        return [_continue(model, prompt, max_tokens, {}) for prompt in prompts]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _run_peft(model, checkpoint, prompts, max_tokens)


def _run_peft(
    model: PreTrainedModel, checkpoint: Checkpoint, prompts: Sequence[Prompt], max_tokens: int
) -> list[Tensor]:
    try:
        adapted = PeftModel.from_pretrained(model, str(checkpoint.weights.parent)).eval()
    except Exception as error:
        raise PeftFailed(str(error).splitlines()[0]) from error
    more = {}
    if checkpoint.config.get("peft_type") in _MULTITASK:
        task = checkpoint.config.get("task_id") or 0
        more["task_ids"] = torch.tensor([task], device=model.device)
    return [_continue(adapted, prompt, max_tokens, more) for prompt in prompts]


def _continue(
    model: PeftModel | PreTrainedModel, prompt: Prompt, max_tokens: int, more: dict[str, Tensor]
) -> Tensor:
    tokens = torch.tensor(prompt, device=model.device)[None]
    rows: list[Tensor] = []
    for _ in range(max_tokens):
        rows.append(model(input_ids=tokens, **more).logits[0, -1].float())
        tokens = torch.cat([tokens, rows[-1].argmax().view(1, 1)], dim=1)
    return torch.stack(rows).cpu()


def _run_weft(
    adapter: Path, base: Path, prompts: Sequence[Prompt], max_tokens: int, device: str
) -> list[Tensor]:
    """The same from the engine, all prompts in one batch, each beside itself on the base alone."""
    with tempfile.TemporaryDirectory(prefix="weft-verify-") as store:
        digest = Store(Path(store)).put(adapter)
        longest = max(max(map(len, prompts)) + max_tokens, CANARY_TOKENS + 1)
        config = EngineConfig(
            model=str(base),
            store=store,
            device=device,
            dtype="float32",
            max_num_seqs=2 * len(prompts),
            max_model_len=longest + read_checkpoint(adapter).lead,
        )
        host = _RecordingHost.of(ModelHost.load(config, lambda stage, done, total: None))
        adapted = [_request(f"adapted-{i}", p, max_tokens, digest) for i, p in enumerate(prompts)]
        plain = [_request(f"plain-{i}", p, max_tokens) for i, p in enumerate(prompts)]
        with contextlib.closing(Engine(host, config)) as engine:
            drive.load(engine, digest)
            drive.drive(engine, [*adapted, *plain])
    return [torch.stack(host.logits[request.id]) for request in adapted]


@dataclass(frozen=True, eq=False)
class _RecordingHost(ModelHost):
    """A model that keeps the logits from which tokens were chosen, by request."""

    logits: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    plans: list[StepPlan] = field(default_factory=list)

    @classmethod
    def of(cls, host: ModelHost) -> "_RecordingHost":
        """The same model, its logits kept."""
        return cls(**{part.name: getattr(host, part.name) for part in fields(ModelHost)})

    def build(self, plan: StepPlan, ids: Tensor | None = None) -> StepBatch:
        """Builds, and remembers whose rows come next."""
        self.plans[:] = [plan]
        return super().build(plan, ids)

    def run(self, batch: StepBatch) -> Tensor:
        """Runs, and keeps each sampling row under its request."""
        logits = super().run(batch)
        (plan,) = self.plans
        for item, row in zip(plan.sampling, batch.sampling, strict=True):
            self.logits[item.seq.request.id].append(logits[row].cpu())
        return logits


def _request(name: str, prompt: Prompt, max_tokens: int, adapter: str | None = None) -> Generate:
    return Generate(
        id=name,
        tenant=TenantContext("verify"),
        prompt=prompt,
        blend=alone(adapter),
        sampling=Sampling(max_tokens=max_tokens, temperature=0.0, ignore_eos=True),
    )
