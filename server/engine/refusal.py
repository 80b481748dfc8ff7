"""Which requests an engine can never serve. Knows nothing of what runs."""

from weft.server.engine.limits import Limits
from weft.server.engine.messages import Generate
from weft.server.engine.page_tables import PageTables


def refusal(request: Generate, lead: int, limits: Limits, tables: PageTables) -> str | None:
    """The error code of a request that can never be served with `lead` positions first."""
    if not request.prompt:
        return "invalid_parameter"
    prompt, sampling = lead + len(request.prompt), request.sampling
    longest = min(prompt + sampling.max_tokens, limits.max_model_len)
    fits_model = prompt + min(sampling.max_tokens, 1) <= limits.max_model_len
    if not fits_model or not tables.could_hold(request.tenant, max(prompt, longest - 1)):
        return "context_length_exceeded"
    return None
