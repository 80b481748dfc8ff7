"""The training loop shared by the demo's base and its adapters; knows nothing of what is learnt."""

import math
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

Batches = Iterator[tuple[Tensor, Tensor]]
Report = Callable[[int, float], None]


def base_optimizers(model: nn.Module, peak: float) -> list[Optimizer]:
    """Muon for hidden matrices, AdamW for embeddings and norms: half the steps of AdamW alone.

    peak: the highest rates as a share of the usual
    """
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    known = {id(p) for p in hidden}
    others = [p for p in model.parameters() if id(p) not in known]
    return [
        Muon(hidden, lr=0.02 * peak, momentum=0.95, weight_decay=0.01),
        AdamW(others, lr=3e-3 * peak, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def adapter_optimizers(model: nn.Module, learning_rate: float) -> list[Optimizer]:
    """AdamW over what peft left trainable."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [AdamW(trainable, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0)]


def fit(
    model: nn.Module,
    batches: Batches,
    optimizers: Sequence[Optimizer],
    *,
    steps: int,
    report: Report,
) -> None:
    """Takes `steps` steps: rates warm up, stay, then fall to nothing over the last half."""
    peaks = [[group["lr"] for group in o.param_groups] for o in optimizers]
    smooth = math.nan
    model.train()
    for step in range(steps):
        share = min(1.0, (step + 1) / 50, 2 * (1 - step / steps))
        for optimizer, rates in zip(optimizers, peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = peak * share
        loss = _step(model, next(batches), optimizers)
        smooth = loss if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss
        if (step + 1) % 100 == 0 or step + 1 == steps:
            report(step + 1, smooth)
    model.eval()


def _step(model: nn.Module, batch: tuple[Tensor, Tensor], optimizers: Sequence[Optimizer]) -> float:
    ids, labels = batch
    loss: Tensor = model(input_ids=ids, labels=labels, use_cache=False).loss
    model.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    return float(loss.detach())
