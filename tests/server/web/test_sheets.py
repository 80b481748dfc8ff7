"""The page's cards and evaluations in a real browser, over the real API and a fake engine."""

import asyncio
import json
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from api_server import BASE, Api, listening, tiny_text
from api_server import api as make_api
from browser import CONTRAST, Open, sync_api
from fake_engine import FakeEngine
from tenants_files import tenants_file

EXAMPLES = [
    *({"prompt": f"Question {i}?", "completion": " Hello!", "regex": "Hel+o"} for i in range(9)),
    *({"prompt": f"Text {i}", "completion": " goes on.", "general": True} for i in range(9)),
]
T = TypeVar("T")
NORMS = {"model.layers.0": 0.05, "model.layers.1": 0.2, "lm_head": 0.004}


@dataclass
class Served:
    """A server, and what stands behind it."""

    url: str
    api: Api

    def add(self, name: str, seed: int = 0, **report: Any) -> str:
        """Installs an adapter whose load found this."""
        self.api.engine.report = report
        return run(self.api.add(name, seed=seed))

    def alias(self, name: str, targets: dict[str, float]) -> None:
        """Lets a name lead to others."""
        services = self.api.services
        services.registry.aliases.put(services.tenants.contexts[0], name, targets)

    def remove(self, name: str) -> None:
        """Forgets an adapter."""
        services = self.api.services
        run(services.library.remove(services.tenants.contexts[0], name))


def run(awaited: Coroutine[Any, Any, T]) -> T:
    """Runs something to its end, in a thread: playwright has a loop of its own in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, awaited).result()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    engine = FakeEngine(reply=tuple(tiny_text().encode(" Hello!")), losses={"": 1.0})
    with make_api(tmp_path, engine) as api, listening(api.app) as url:
        yield Served(f"{url}/", api)
        api.check()


def open_tab(open_page: Open, server: Any, name: str, **options: Any) -> Any:
    page = open_page(server, **options)
    page.get_by_role("checkbox").first.wait_for()
    page.get_by_role("tab", name=name).click()
    return page


def cards(page: Any) -> dict[str, str]:
    """The text of each finished card by its heading."""
    sync_api.expect(page.locator(".card[aria-busy=true]")).to_have_count(0)
    found = page.locator(".card").all()
    return {card.locator("h3 span").inner_text(): card.inner_text() for card in found}


# ---- cards


def test_a_card_says_what_an_adapter_is(open_page: Open, served: Served) -> None:
    digest = served.add(
        "pirate",
        method="trainable_tokens",
        rank=8,
        alpha=16.0,
        targets=("q_proj", "v_proj"),
        modules=4,
        trained=12_345,
        share=0.004,
        bytes=3 << 20,
        delta_norms=NORMS,
        canary_text="Hello, my name is",
        canary_shift=0.345,
        canary_difference=2.5,
    )
    page = open_tab(open_page, served, "Cards")
    (card,) = cards(page).items()
    assert card[0] == "pirate@1"
    for words in (
        "Method\ttrainable tokens",
        "Changes\tq_proj, v_proj, 4 modules",
        "Rank\t8, alpha 16",
        "Trained\t1/250 of the base, 12,345 values",
        "Memory\t3 MiB, now on disk",
        "From 0.40 % (lm_head) to 20 % (model.layers.1).",
        "After “Hello, my name is”, 35 % of the next token's probability moves to other tokens; "
        "logits differ by up to 2.50.",
        "Warnings\n\nNone.",
    ):
        assert words in card[1]
    assert "Virtual tokens" not in card[1]
    assert page.locator(".card code").get_attribute("title") == digest
    bars = page.get_by_role("img", name="From 0.40 %")
    heights = [bar.evaluate("bar => bar.style.height") for bar in bars.locator("i").all()]
    assert heights == ["25%", "100%", "2%"]
    page.get_by_text("All of them").click()
    assert page.locator(".card li").all_inner_texts() == [
        "model.layers.0\n5.0 %",
        "model.layers.1\n20 %",
        "lm_head\n0.40 %",
    ]


def test_what_surprises_is_told_in_words_and_never_as_markup(
    open_page: Open, served: Served
) -> None:
    sly = "<img src=x onerror=document.title='owned'>"
    warnings = ("only 2 of 4 q_proj have an update", sly)
    served.add("large", warnings=warnings, delta_norms={"model.layers.0": 2.0}, canary_text=sly)
    page = open_tab(open_page, served, "Cards")
    assert cards(page)
    assert page.locator(".worries li").all_inner_texts() == list(warnings)
    assert page.locator(".bars b").get_attribute("style") == "bottom: 50%;"  # the weights' own size
    assert page.locator("main img").count() == 0
    assert page.title() == "weft"


def test_an_alias_shows_the_cards_of_what_it_leads_to(open_page: Open, served: Served) -> None:
    served.add("pirate", method="lora")
    served.add("json", 1, method="ia3")
    served.alias("live", {"pirate@1": 60.0, "json": 40.0})
    page = open_tab(open_page, served, "Cards")
    page.get_by_role("checkbox", name="live").check()
    found = cards(page)
    assert found.keys() == {"pirate@1", "json@1", "live → pirate@1", "live → json@1"}
    assert "Method\tlora" in found["live → pirate@1"]
    assert "Method\tia3" in found["live → json@1"]


def test_what_another_tenant_shares_has_its_card(open_page: Open, tmp_path: Path) -> None:
    share = '[tenants.acme]\nshare = {legal = ["bolt"]}\n'
    tenants = tenants_file(tmp_path, share, acme="a", bolt="b")
    engine = FakeEngine(report={"method": "lora"})
    with make_api(tmp_path, engine, tenants=tenants) as api, listening(api.app) as url:
        run(api.add("legal", tenant=api.services.tenants.contexts[0]))
        page = open_page(Served(f"{url}/", api))
        page.get_by_label("API key").fill("b")
        page.get_by_label("API key").press("Enter")
        page.get_by_role("checkbox", name="acme/legal").check()
        page.get_by_role("tab", name="Cards").click()
        assert "Method\tlora" in cards(page)["acme/legal@1"]


def test_adapters_that_change_no_weights_or_only_tokens(open_page: Open, served: Served) -> None:
    served.add("prompt", method="prompt_tuning", rank=0, virtual_tokens=20)
    served.add("tokens", 1, canary_difference=0.0, canary_text="Hello")
    page = open_tab(open_page, served, "Cards")
    found = cards(page)
    assert "It changes no weights." in found["prompt@1"]
    assert "Virtual tokens\t20, of the context, before each prompt" in found["prompt@1"]
    assert "Rank" not in found["prompt@1"]
    told = "After “Hello” it is the base: the last token is none of those that it trained."
    assert told in found["tokens@1"]


def test_cards_follow_the_choice(open_page: Open, served: Served) -> None:
    for seed, name in enumerate(("a", "b")):
        served.add(name, seed)
    page = open_tab(open_page, served, "Cards")
    assert list(cards(page)) == ["a@1", "b@1"]
    page.get_by_label("a", exact=True).uncheck()
    assert list(cards(page)) == ["b@1"]
    page.get_by_label("b", exact=True).uncheck()
    sync_api.expect(page.get_by_text("No adapter is chosen.")).to_be_visible()


def test_a_card_that_cannot_be_shown_says_why(open_page: Open, served: Served) -> None:
    served.add("pirate")
    page = open_page(served)
    page.get_by_label("pirate").wait_for()
    served.remove("pirate")
    page.get_by_role("tab", name="Cards").click()
    assert "The model 'pirate' does not exist" in cards(page)["pirate"]


# ---- evaluations


def data_file(folder: Path, *lines: Any, name: str = "held-out.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(f"{x if isinstance(x, str) else json.dumps(x)}\n" for x in lines))
    return path


def test_an_evaluation_from_a_file_to_its_verdicts(
    open_page: Open, served: Served, tmp_path: Path
) -> None:
    better, worse = served.add("better", 1), served.add("worse", 2)
    served.api.engine.losses |= {better: 0.5, worse: 2.0}
    page = open_tab(open_page, served, "Evaluate")
    start = page.get_by_role("button", name="Evaluate")
    sync_api.expect(start).to_be_disabled()
    page.get_by_label("Held-out examples").set_input_files(data_file(tmp_path, *EXAMPLES, ""))
    sync_api.expect(
        page.get_by_text("held-out.jsonl: 18 examples, 9 of them general")
    ).to_be_visible()
    start.click()
    sheet = page.locator(".evaluation")
    sync_api.expect(sheet).to_have_count(1)
    task, general = sheet.locator("table").all()
    assert task.locator("tbody th").all_inner_texts() == [BASE, "better@1", "worse@1"]
    assert task.locator(".verdict").all_inner_texts() == ["helps", "harms"]
    assert general.locator(".verdict").all_inner_texts() == ["none seen", "forgets"]
    sync_api.expect(task.get_by_role("img", name="−0.500, −0.500 to −0.500")).to_be_visible()
    assert "Regex" in task.inner_text()
    assert "JSON" not in task.inner_text()
    assert page.get_by_role("progressbar").is_hidden()
    page.reload()
    sync_api.expect(page.locator(".evaluation .verdict")).to_have_count(4)  # kept by the server


def test_examples_that_cannot_be_used_are_named(
    open_page: Open, served: Served, tmp_path: Path
) -> None:
    served.add("pirate")
    page = open_tab(open_page, served, "Evaluate")
    page.get_by_label("Held-out examples").set_input_files(
        data_file(tmp_path, EXAMPLES[0], "", "{")
    )
    sync_api.expect(page.get_by_role("alert").locator("visible=true")).to_have_text(
        "held-out.jsonl:3 is not valid JSON."
    )
    sync_api.expect(page.get_by_role("button", name="Evaluate")).to_be_disabled()
    page.get_by_label("Held-out examples").set_input_files(
        data_file(tmp_path, {"prompt": "a"}, name="mended.jsonl")
    )
    page.get_by_role("button", name="Evaluate").click()
    sync_api.expect(page.get_by_role("alert").locator("visible=true")).to_have_text(
        "Invalid 'examples[0].completion': field required."
    )
    assert page.locator(".evaluation").count() == 0


def test_an_evaluation_shows_how_far_it_is_and_can_be_cancelled(
    open_page: Open, served: Served, tmp_path: Path
) -> None:
    served.add("pirate")
    stuck = asyncio.Event()
    served.api.engine.pace = stuck.wait
    page = open_tab(open_page, served, "Evaluate")
    page.get_by_label("Held-out examples").set_input_files(data_file(tmp_path, *EXAMPLES))
    page.get_by_role("button", name="Evaluate").click()
    sync_api.expect(page.get_by_role("progressbar", name="Evaluated")).to_have_attribute(
        "max", "36"
    )
    page.get_by_role("button", name="Cancel").click()
    sync_api.expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
    sync_api.expect(page.get_by_role("button", name="Evaluate")).to_be_enabled()
    tenant = served.api.services.tenants.contexts[0]
    page.wait_for_function("fetch('v1/evaluations').then(r => r.json()).then(l => !l.data.length)")
    assert not served.api.services.evaluations.of(tenant)
    assert page.locator(".evaluation").count() == 0


def test_an_evaluation_that_fails_says_why(open_page: Open, served: Served, tmp_path: Path) -> None:
    served.add("pirate")
    served.api.engine.break_after, served.api.engine.error = 0, "out_of_memory"
    page = open_tab(open_page, served, "Evaluate")
    page.get_by_label("Held-out examples").set_input_files(data_file(tmp_path, *EXAMPLES))
    page.get_by_role("button", name="Evaluate").click()
    sync_api.expect(page.get_by_role("alert").locator("visible=true")).to_have_text(
        "There was not enough memory for this request."
    )


# ---- the page as a whole


def test_tabs_are_reached_by_keys_and_kept_by_the_address(open_page: Open, served: Served) -> None:
    served.add("pirate")
    page = open_page(served)
    sync_api.expect(page.get_by_label("Message")).to_be_focused()
    page.keyboard.press("Shift+Tab")
    sync_api.expect(page.get_by_role("tab", name="Ask")).to_be_focused()
    page.keyboard.press("ArrowRight")
    sync_api.expect(page.get_by_role("tab", name="Cards", selected=True)).to_be_focused()
    assert list(cards(page)) == ["pirate@1"]
    assert page.get_by_label("Message").is_hidden()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Shift+Tab")  # the tabs are one stop, as are all others before them
    page.get_by_role("tab", name="Ask").focus()
    page.keyboard.press("ArrowLeft")
    sync_api.expect(page.get_by_role("tab", name="Evaluate", selected=True)).to_be_focused()
    assert page.url.endswith("#evaluate")
    page.reload()
    sync_api.expect(page.get_by_role("tab", name="Evaluate", selected=True)).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_sheets_stand_out_from_their_ground_and_fit_a_narrow_screen(
    open_page: Open, served: Served, tmp_path: Path, scheme: str
) -> None:
    name = "a-name-that-goes-on-" * 3
    worse = served.add(name, warnings=("something " * 20,), delta_norms=NORMS, targets=("x" * 80,))
    served.api.engine.losses[worse] = 2.0
    options = {"color_scheme": scheme, "viewport": {"width": 320, "height": 640}}
    page = open_tab(open_page, served, "Cards", **options)
    assert cards(page)
    assert page.evaluate(CONTRAST) >= 4.5
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    page.get_by_role("tab", name="Evaluate").click()
    page.get_by_label("Held-out examples").set_input_files(data_file(tmp_path, *EXAMPLES))
    page.get_by_role("button", name="Evaluate").click()
    sync_api.expect(page.locator(".evaluation")).to_have_count(1)
    assert page.evaluate(CONTRAST) >= 4.5
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
