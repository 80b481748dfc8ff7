"""One browser for all tests of a module, and pages that must not fail behind their backs."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest


class Server(Protocol):
    """Something with an address."""

    url: str


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from browser import CHROMIUM, FLAGS, sync_api  # skips the tests where playwright is missing

    if CHROMIUM is None:
        pytest.skip("no Chromium: install one or name it in WEFT_CHROMIUM")
    sync_api.expect.set_options(timeout=30_000)  # a busy machine is no failure
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a server's page; at the end no script may have failed, no foreign host been asked."""
    contexts, failures = [], []

    def open_page(server: Server, **options: Any) -> Any:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((server.url, "data:"))
                else failures.append(request.url)
            ),
        )
        page.goto(server.url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not failures
