"""What an engine can hold, and do in a step."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one engine can hold, and do in a step.

    num_pages: KV pages, page 0 included   page_size: tokens in a page
    max_num_seqs: sequences running at a time   max_num_batched_tokens: rows in a step
    max_model_len: positions in a sequence   patience: seconds until an adapter gets room by force
    speculation: whether decodes may have drafts
    """

    num_pages: int
    page_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    eos_token_ids: frozenset[int] = frozenset()
    patience: float = 1.0
    speculation: bool = False

    def __post_init__(self) -> None:
        if self.max_num_seqs < 1 or self.page_size < 1:
            raise ValueError("max_num_seqs and page_size must be at least 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least "
                f"max_num_seqs ({self.max_num_seqs}): a running sequence decodes in every step"
            )
        if self.patience <= 0:
            raise ValueError("patience must be more than 0 seconds")
