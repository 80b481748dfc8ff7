"""Which computed pages a new sequence may start from. Knows pages by what they hold only."""

import hashlib
import hmac
import secrets
from array import array
from dataclasses import dataclass

from weft.adapters.blend import BASE, text_of
from weft.adapters.tenancy import TenantContext
from weft.server.engine.pages import Content, PagePool
from weft.server.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class PrefixRoot:
    """What all pages of this engine depend on; tenants and adapters are added per sequence.

    secret: never leaves the server, so that keys cannot be computed outside it
    """

    secret: bytes
    base_digest: str
    kv_dtype: str

    def key(self, tenant: TenantContext, blend: str) -> bytes:
        """The key before the first page: equal only for equal tenant, base, blend and dtype."""
        fields = (tenant.id, self.base_digest, blend, self.kv_dtype)
        encoded = (field.encode() for field in fields)
        message = b"".join(len(field).to_bytes(4, "little") + field for field in encoded)
        return hmac.digest(self.secret, message, "sha256")


class PrefixCache:
    """Finds and publishes full pages by a chained SHA-256 over tokens, and compares the tokens.

    enabled: whether pages with prompts are shared; those that hold only what an adapter brings are
    always shared
    """

    def __init__(self, pool: PagePool, page_size: int, root: PrefixRoot | None) -> None:
        """Without a `root` nothing is shared but what adapters bring."""
        self.enabled = root is not None
        self._pool = pool
        self._page_size = page_size
        self._root = root or PrefixRoot(secrets.token_bytes(32), base_digest="", kv_dtype="")

    def find(self, seq: Sequence) -> list[int]:
        """The pages that hold the longest known prefix of `seq`, its last token left out.

        At least one token is left to compute. A sequence that wants log-probabilities of its prompt
        computes it all, because they come out of that.
        """
        pages: list[int] = []
        wants_prompt = seq.sampling.prompt_logprobs is not None and not seq.generated
        last = min(seq.lead if wants_prompt else seq.length - 1, self._shareable(seq))
        for index in range(last // self._page_size):
            page = self._pool.find(self._content(seq, index))
            if page is None:
                break
            pages.append(page)
        return pages

    def publish(self, seq: Sequence) -> None:
        """Lets others start from the pages that `seq` has filled since the last call."""
        last = min(seq.computed, self._shareable(seq))
        for index in range(seq.published, last // self._page_size):
            self._pool.publish(seq.pages[index], self._content(seq, index))
            seq.published = index + 1

    def keep(self, seq: Sequence) -> None:
        """Lets `seq` alone find again what its pages hold beyond those that are published."""
        seq.saved = seq.computed - seq.uncopied
        for index in range(seq.published, -(-seq.saved // self._page_size)):
            self._pool.publish(seq.pages[index], self._own(seq, index))

    def kept(self, seq: Sequence, first: int) -> list[int]:
        """The pages from index `first` on that were kept for `seq` and hold that still."""
        pages: list[int] = []
        for index in range(first, -(-seq.saved // self._page_size)):
            page = self._pool.find(self._own(seq, index))
            if page is None:
                break
            pages.append(page)
        return pages

    def _own(self, seq: Sequence, index: int) -> Content:
        """What page `index` holds of what is saved of `seq`; its key is no other sequence's."""
        start = index * self._page_size
        stop = min(start + self._page_size, seq.saved)
        return Content(f"{seq.arrival}/{index}".encode(), seq.identities(start, stop))

    def _shareable(self, seq: Sequence) -> int:
        """How many of its leading positions may be shared."""
        return seq.length if self.enabled else seq.traits.prefix

    def _content(self, seq: Sequence, index: int) -> Content:
        """What page `index` of `seq` holds; asked for in the order of the pages."""
        contents = seq.contents
        if index == len(contents):
            start = index * self._page_size
            tokens = seq.identities(start, start + self._page_size)
            key = hashlib.sha256(self._parent(seq, index) + array("q", tokens).tobytes()).digest()
            contents.append(Content(key, tokens))
        return contents[index]

    def _parent(self, seq: Sequence, index: int) -> bytes:
        """What the key of page `index` is chained to: all that its KV depends on beside its tokens.

        Pages before the adapter's first row are those of the tenant's requests to the base.
        """
        before = seq.contents[-1].key if index else b""
        first, offset = divmod(seq.base_until, self._page_size)
        if index < first:
            return before or self._root.key(seq.tenant, text_of(BASE))
        if index > first:
            return before
        own = self._root.key(seq.tenant, text_of(seq.blend))
        return own if not seq.base_until else before + own + offset.to_bytes(4, "little")
