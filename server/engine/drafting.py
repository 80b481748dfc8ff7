"""Gives decodes drafts: tokens that stood after an earlier occurrence of what stands at their end.

A draft is right if it is the token that the sampler picks, so answers are the same with and without
drafts. Knows sequences and pages; whether drafts pay is decided in speculation.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from weft.server.engine.history import History
from weft.server.engine.limits import Limits
from weft.server.engine.page_tables import PageTables
from weft.server.engine.sequence import Sequence as Row
from weft.server.engine.speculation import MOST_DRAFTS, Offer, Speculation
from weft.server.engine.step_plan import Scheduled, StepPlan

MOST_SKIPS = 4
_NOTHING = Offer(rate=0.0, drafts=0)


class Drafting:
    """Adds drafts to steps that only decode, and learns what becomes of them.

    drafted, accepted: drafts that were checked so far, and those of them that were right
    """

    def __init__(self, limits: Limits, tables: PageTables, clock: Callable[[], float]) -> None:
        """clock: seconds, monotonic"""
        self.drafted = 0
        self.accepted = 0
        self._limits = limits
        self._tables = tables
        self._clock = clock
        self.speculation = Speculation()
        self._sequences = 0  # of the step that was extended and not observed yet
        self._began = self._ready = self._ended = 0.0
        self._vain = 0  # times in a row that drafts were looked for and none was made
        self._skips = 0  # steps that may still skip looking for them

    def extend(self, decodes: list[Scheduled], *, alone: bool) -> list[Scheduled]:
        """A step's decodes, some of them now with drafts, for which there are pages.

        Only if these are `alone` in the step: beside prompts a step computes enough as it is.
        """
        self._sequences = len(decodes) if alone and self._limits.speculation else 0
        if not self._sequences:
            return decodes
        self._began = self._clock()
        if self.speculation.wants(len(decodes)):
            decodes = self._extended(decodes)
            self._vain = 0 if any(item.drafts for item in decodes) else self._vain + 1
            self._skips = min(2**self._vain, MOST_SKIPS) if self._vain else 0
        self._ready = self._clock()
        return decodes

    def may_skip(self, sequences: int) -> bool:
        """Whether to go on without drafts, which are found only once all tokens are known.

        Yes, where they do not pay; else for as many steps as looking for them was in vain before.
        """
        if not self._limits.speculation or not self.speculation.wants(sequences):
            return True
        self._skips -= 1
        return self._skips >= 0

    def observe(self, plan: StepPlan, runs: Sequence[Sequence[int]]) -> None:
        """Takes in what each of `plan.sampling` has got from a step that ends now."""
        if not self._limits.speculation:
            return
        if plan.is_ahead:  # it has the device for itself once the one before it has ended
            self._sequences = len(plan.items)
            self._began = self._ready = self._ended
        self._ended = self._clock()
        sequences, self._sequences = self._sequences, 0
        if not sequences or sequences != len(plan.items):
            return
        seconds = self._ended - self._ready
        drafted = accepted = 0
        for item, run in zip(plan.sampling, runs, strict=True):
            history = item.seq.history
            if item.drafts and history is not None and history.match is not None:
                right = len(run) - 1
                self.speculation.learn(
                    history.acceptance, history.match.length, len(item.drafts), right
                )
                drafted += len(item.drafts)
                accepted += right
        self.drafted += drafted
        self.accepted += accepted
        self.speculation.observe(
            sequences, drafted, accepted, seconds=seconds, looking=self._ready - self._began
        )

    def _extended(self, decodes: list[Scheduled]) -> list[Scheduled]:
        offers = [self._offer(item.seq) for item in decodes]
        counts = self.speculation.allot(len(decodes), offers, self._room(len(decodes)))
        return [
            self._with_drafts(item, count) if count else item
            for item, count in zip(decodes, counts, strict=True)
        ]

    def _room(self, sequences: int) -> int:
        """Rows beside one for each sequence.

        No step has more rows of logits than its memory was measured for, or than one sequence has
        with all its drafts.
        """
        most = max(self._limits.max_num_seqs, 1 + MOST_DRAFTS)
        return min(most, self._limits.max_num_batched_tokens) - sequences

    def _offer(self, seq: Row) -> Offer:
        still = seq.sampling.max_tokens - seq.generated
        beyond = self._limits.max_model_len - seq.length
        drafts = min(MOST_DRAFTS, still - 1, beyond - 1)
        if drafts < 1:
            return _NOTHING
        if seq.history is None:
            seq.history = History()
        match = seq.history.look(seq.tokens)
        if match is None:
            return _NOTHING
        return Offer(self.speculation.rate(seq.history.acceptance, match.length), drafts)

    def _with_drafts(self, item: Scheduled, count: int) -> Scheduled:
        seq = item.seq
        assert seq.history is not None
        assert seq.history.match is not None
        count = self._tables.stretch(seq, count)
        drafts = seq.history.match.continuation(seq.tokens, count)
        return replace(item, count=item.count + count, drafts=drafts)
