"""Launches steps on the model and takes in what they chose. Decides nothing of their contents."""

import hashlib
from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor

from weft.adapters.residency import Residency
from weft.server.engine.batch import StepBatch
from weft.server.engine.loads import Loads
from weft.server.engine.model import ModelHost
from weft.server.engine.outbox import Outbox
from weft.server.engine.sampling import (
    Choices,
    Sampled,
    SampleRow,
    accepted,
    choose,
    token_logprobs,
)
from weft.server.engine.sequence import Sequence
from weft.server.engine.step_plan import Scheduled, StepPlan


class Flight:
    """A step that was launched and whose tokens the host has not read yet.

    plan: what of it is still wanted
    """

    def __init__(self, plan: StepPlan, choices: Choices | None) -> None:
        """choices: of all rows that choose, those of drafts included; None where there are none"""
        self.plan = plan
        self._launched = plan
        self._choices = choices

    def ids(self, plan: StepPlan) -> Tensor:
        """int64 [rows]: the ids of a step that goes on with what this one chooses."""
        assert self._choices is not None
        rows = {item.seq: row for row, item in enumerate(self._launched.sampling)}
        wanted = [rows[item.seq] for item in plan.items]
        tokens = self._choices.tokens
        if wanted == list(range(len(tokens))):
            return tokens
        return tokens[torch.tensor(wanted).to(tokens.device, non_blocking=True)]

    def read(self) -> dict[Sequence, list[Sampled]]:
        """What the sequences of `plan` got, in the plan's order; waits for it."""
        choices = iter(self._choices.read() if self._choices else ())
        runs = {
            item.seq: accepted(list(islice(choices, 1 + len(item.drafts))), item.drafts)
            for item in self._launched.sampling
        }
        return {item.seq: runs[item.seq] for item in self.plan.sampling}

    def keep(self, wanted: Callable[[Sequence], bool]) -> None:
        """What the other sequences have in it counts no more."""
        items = tuple(item for item in self.plan.items if wanted(item.seq))
        self.plan = StepPlan(items, self.plan.is_ahead)


class Launcher:
    """Runs plans on one model."""

    def __init__(
        self,
        model: ModelHost,
        residency: Residency,
        loads: Loads,
        outbox: Outbox,
        seed: int,
    ) -> None:
        """loads: they look at canaries' logits   outbox: gets prompts' log-probabilities"""
        self._model = model
        self._residency = residency
        self._loads = loads
        self._outbox = outbox
        self._seed = seed

    def launch(self, plan: StepPlan, before: Flight | None = None) -> Flight:
        """Asks the device for a step; waits for it only where prompts or canaries are looked at.

        before: the step that the plan goes on with, if the host has not read its tokens yet
        """
        self._model.place(plan)
        for item in plan.items:
            for share in item.seq.shares:
                if not self._residency.valid(share.ref):
                    raise RuntimeError(f"{share.ref} was given to another version")
        batch = self._model.build(plan, before.ids(plan) if before else None)
        logits = self._model.run(batch)
        self._keep_prompts(batch, logits)
        chosen = logits[list(batch.sampling)] if batch.prompts else logits
        rows: list[SampleRow] = []
        for item in plan.sampling:
            if item.seq.request.id in self._loads:
                self._observe(item, chosen[len(rows)])
            rows += self._sample_rows(item)
        return Flight(plan, choose(chosen, rows) if rows else None)

    def _observe(self, item: Scheduled, logits: Tensor) -> None:
        """Looks at a canary's logits, or keeps what all canaries begin with."""
        if self._loads.begins(item.seq.request.id):
            self._model.keep(item)
        else:
            self._loads.observe(item.seq.request.id, logits)

    def _sample_rows(self, item: Scheduled) -> Iterator[SampleRow]:
        """Its last row, and each draft's as if the drafts were part of the answer."""
        seq, seed, ends = item.seq, self._row_seed(item.seq), self._model.facts.eos_token_ids
        unread = item.plain.stop - seq.length
        for known in range(1 + len(item.drafts)):
            tokens = [*seq.tokens, *item.drafts[:known]] if known else seq.tokens
            yield SampleRow(seq.sampling, tokens, seq.prompt_len, seed, ends, unread)

    def _row_seed(self, seq: Sequence) -> int:
        """The request's seed, another one for each further child; without one, the engine's own."""
        seed = seq.sampling.seed
        if seed is None:
            return _mix(self._seed, seq.arrival)
        return seed if seq.index == 0 else _mix(seed, seq.index)

    def _keep_prompts(self, batch: StepBatch, logits: Tensor) -> None:
        for prompt in batch.prompts:
            count = prompt.rows.stop - prompt.rows.start
            tokens = prompt.seq.tokens[prompt.position : prompt.position + count]
            top = prompt.seq.sampling.prompt_logprobs or 0
            found = token_logprobs(logits[prompt.rows], tokens, [top] * count)
            self._outbox.add_prompt(prompt.seq, prompt.position, found)


def _mix(seed: int, number: int) -> int:
    """A seed that depends on both, and on nothing else."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=8).digest())
