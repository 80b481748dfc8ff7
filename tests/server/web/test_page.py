"""The page in a real browser: choosing adapters, streaming side by side, stopping, failing."""

import json
from pathlib import Path
from typing import Any

import pytest
from browser import CONTRAST, Open, sync_api
from page_server import DIGEST, PageServer, serving


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    path = tmp_path / "examples.json"
    path.write_text(json.dumps([{"prompt": "Where is my order 12?"}, {"prompt": "Hello!"}]))
    return path


def answers(page: Any) -> dict[str, Any]:
    """The newest round's finished cards by adapter id."""
    newest = page.locator(".round").first
    sync_api.expect(newest.locator("[aria-busy=true]")).to_have_count(0)
    cards = newest.locator(".answer").all()
    return {card.locator("h3 span").inner_text(): card for card in cards}


def say(page: Any, message: str) -> None:
    page.get_by_label("Message").fill(message)
    page.get_by_label("Message").press("Enter")


def test_every_chosen_adapter_answers_side_by_side(open_page: Open) -> None:
    with serving(PageServer()) as server:
        page = open_page(server)
        say(page, "hello there")
        cards = answers(page)
        assert list(cards) == ["tiny@1", "pirate@1", "json@1"]
        assert cards["pirate@1"].locator(".said").inner_text() == "pirate: hello there"
        assert cards["pirate@1"].locator("code").inner_text() == DIGEST[:12]
        assert cards["pirate@1"].locator("code").get_attribute("title") == DIGEST
        figures = cards["pirate@1"].locator("dl").inner_text()
        assert all(part in figures for part in ("to first token", "3", "tokens"))
        assert page.get_by_role("status").inner_text() == "3 answers of 3 complete."
    assert {body["model"] for body in server.asked} == {"tiny", "pirate", "json"}
    assert all(body["stream"] and body["temperature"] == 0 for body in server.asked)


@pytest.mark.parametrize(
    ("clock", "figures"),
    [
        ("{sent: 0, first: 100, last: 600, tokens: 11}", ["100 ms", "20", "11"]),
        ("{sent: 0, first: 100, last: 2100, chunks: 5}", ["100 ms", "2.0", "5"]),
        ("{sent: 0, first: 100, last: 101, tokens: 9}", ["100 ms", "9"]),
        ("{sent: 0, first: 100, last: 100, tokens: 1}", ["100 ms", "1"]),
        ("{sent: 0}", []),
    ],
)
def test_figures_show_a_rate_only_where_one_can_be_told(
    open_page: Open, clock: str, figures: list[str]
) -> None:
    with serving(PageServer()) as server:
        page = open_page(server)
        page.evaluate(
            f"document.body.append(at('answer').content.cloneNode(true)); "
            f"showFigures(document.body.lastElementChild, {clock})"
        )
        assert page.locator(".answer dd").all_inner_texts() == figures


def test_only_the_chosen_adapters_are_asked(open_page: Open) -> None:
    with serving(PageServer()) as server:
        page = open_page(server)
        page.get_by_label("tiny").uncheck()
        page.get_by_label("json").uncheck()
        say(page, "hello")
        assert list(answers(page)) == ["pirate@1"]
        page.get_by_label("pirate").uncheck()
        page.get_by_label("Message").fill("hello again")
        sync_api.expect(page.get_by_role("button", name="Send")).to_be_disabled()
    assert len(server.asked) == 1


def test_no_more_are_chosen_than_a_browser_has_connections(open_page: Open) -> None:
    many = tuple(f"customer-{number}" for number in range(20))
    with serving(PageServer(adapters=many)) as server:
        page = open_page(server)
        boxes = page.get_by_role("checkbox")
        assert sum(box.is_checked() for box in boxes.all()) == 6
        assert page.get_by_label("customer-19").is_disabled()
        page.get_by_label("tiny").uncheck()
        page.get_by_label("Filter adapters").fill("mer-19")
        sync_api.expect(boxes.locator("visible=true")).to_have_count(1)
        page.get_by_label("customer-19").check()
        say(page, "hi")
        assert "customer-19@1" in answers(page)


def test_examples_are_offered_and_sent_by_a_click(open_page: Open, examples: Path) -> None:
    with serving(PageServer(), examples) as server:
        page = open_page(server)
        page.get_by_role("button", name="Where is my order 12?").click()
        assert answers(page)["json@1"].locator(".said").inner_text() == (
            "json: Where is my order 12?"
        )


def test_without_examples_none_are_shown(open_page: Open) -> None:
    with serving(PageServer()) as server:
        page = open_page(server)
        page.wait_for_load_state("networkidle")
        assert page.get_by_role("group", name="Examples").is_hidden()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("refuses", "The model does not exist."),
        ("breaks", "The engine is restarting."),
        ("ends", "The server ended the stream early."),
    ],
)
def test_a_failure_shows_its_message_and_leaves_the_others_alone(
    open_page: Open, model: str, message: str
) -> None:
    with serving(PageServer(adapters=("pirate", model))) as server:
        page = open_page(server)
        say(page, "hello")
        assert len(answers(page)) == 3
        assert page.locator(".answer").get_by_role("alert").all_inner_texts() == [message]
        assert page.get_by_role("status").inner_text() == "2 answers of 3 complete."


@pytest.mark.parametrize("way", ["button", "escape"])
def test_stopping_ends_the_streams_and_keeps_what_was_said(open_page: Open, way: str) -> None:
    with serving(PageServer(adapters=("hangs",))) as server:
        page = open_page(server)
        say(page, "hello")
        sync_api.expect(page.get_by_text("hangs:")).to_be_visible()
        if way == "button":
            page.get_by_role("button", name="Stop").click()
        else:
            page.keyboard.press("Escape")
        stopped = answers(page)["hangs@1"]
        assert stopped.locator(".said").inner_text() == "hangs:"
        assert stopped.get_by_role("alert").inner_text() == "Stopped."
        assert server.abandoned.wait(10)
        say(page, "again")
        sync_api.expect(page.locator(".round")).to_have_count(2)
        page.keyboard.press("Escape")
        answers(page)


def test_a_key_is_asked_for_where_one_is_needed(open_page: Open) -> None:
    with serving(PageServer(key="secret")) as server:
        page = open_page(server)
        sync_api.expect(page.get_by_text("The API key is missing.")).to_be_visible()
        page.get_by_label("API key").fill("secret")
        page.get_by_label("API key").press("Enter")
        sync_api.expect(page.get_by_label("pirate")).to_be_checked()
        assert page.get_by_text("The API key is missing.").is_hidden()


def test_a_server_that_went_away_is_named(open_page: Open) -> None:
    with serving(PageServer()) as server:
        page = open_page(server)
        sync_api.expect(page.get_by_label("pirate")).to_be_checked()
    say(page, "hello")
    assert len(answers(page)) == 3
    texts = page.locator(".answer").get_by_role("alert").all_inner_texts()
    assert texts == ["The server cannot be reached."] * 3


def test_names_and_answers_are_text_never_markup(open_page: Open) -> None:
    sly = "<img src=x onerror=document.title='owned'>"
    with serving(PageServer(adapters=(sly,))) as server:
        page = open_page(server)
        say(page, "<b>bold</b>")
        assert answers(page)
        assert page.locator("main img, main b").count() == 0
        assert page.title() == "weft"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(open_page: Open, scheme: str) -> None:
    """WCAG AA asks for a contrast of 4.5 between text and what is behind it."""
    with serving(PageServer(adapters=("pirate",))) as server:
        page = open_page(server, color_scheme=scheme)
        say(page, "hello")
        answers(page)
        worst = page.evaluate(CONTRAST)
    assert worst >= 4.5


def test_a_narrow_screen_needs_no_sideways_scrolling(open_page: Open) -> None:
    with serving(PageServer(adapters=("a-name-that-goes-on-" * 4,))) as server:
        page = open_page(server, viewport={"width": 320, "height": 640})
        say(page, "long" * 60)
        answers(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
