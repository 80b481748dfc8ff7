"""The page at `/` and the example prompts it offers; one self-contained file, nothing external."""

import base64
import hashlib
import re
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response

_PAGE = Path(__file__).parent.parent / "web" / "index.html"


def page_routes(examples: Path | None = None) -> APIRouter:
    """Routes of the page; `examples` (JSON `[{"prompt": str, …}, …]`) is served where given."""
    router = APIRouter(include_in_schema=False)
    html = _PAGE.read_text(encoding="utf-8")
    headers = {"Content-Security-Policy": _policy(html), "X-Content-Type-Options": "nosniff"}

    @router.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers=headers)

    if examples is not None:
        listed = examples.read_bytes()

        @router.get("/examples")
        async def example_prompts() -> Response:
            return Response(listed, media_type="application/json")

    return router


def _policy(html: str) -> str:
    """A policy under which only the page's own script runs and only this server is asked."""
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
