"""When a sequence is done. Knows token ids only; stop strings are text, which is not known here."""

from collections.abc import Iterable
from dataclasses import dataclass

from weft.server.engine.sequence import Finish, Sequence


@dataclass(frozen=True, slots=True)
class FinishRules:
    """What ends any sequence of this base model.

    eos_token_ids: end of text, unless a request ignores it
    max_model_len: positions that the model can see, prompt and what an adapter puts first included
    """

    eos_token_ids: frozenset[int]
    max_model_len: int

    def extend(self, seq: Sequence, run: Iterable[int]) -> int:
        """Appends the tokens of a run up to one that ends `seq`; returns how many that are."""
        taken = 0
        for token in run:
            seq.tokens.append(token)
            taken += 1
            if self.finish_reason(seq) is not None:
                break
        return taken

    def ends_next(self, seq: Sequence) -> bool:
        """Whether the next token of `seq` is its last, whichever it is."""
        at_most = seq.generated + 1 >= seq.sampling.max_tokens
        return at_most or seq.length + 1 >= self.max_model_len

    def finish_reason(self, seq: Sequence) -> Finish | None:
        """Why `seq` is done, all its tokens so far being final; None if it goes on."""
        sampling = seq.sampling
        generated = seq.generated
        if generated and generated >= sampling.min_tokens:
            last = seq.tokens[-1]
            if last in sampling.stop_token_ids:
                return Finish("stop", stop_token=last)
            if last in self.eos_token_ids and not sampling.ignore_eos:
                return Finish("stop", stop_token=last)
        if generated >= sampling.max_tokens or seq.length >= self.max_model_len:
            return Finish("length")
        return None
