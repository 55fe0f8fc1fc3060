"""The app in Chromium, by keyboard: correct, see, export, undo, read a report; nothing foreign.

`CORRIGENDA_SCREENSHOTS=FOLDER` keeps pictures of all pages, light, dark and on a small screen.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import corrigenda as cg
from corrigenda.app.workspace import Workspace
from corrigenda.lm.model import LanguageModel
from corrigenda.run import runner
from corrigenda.run.spec import RunSpec
from tests.support.app_server import open_app

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), "")
PAGES = ("Correct", "Where", "Compare", "Book", "Runs")
PROMPT = "The capital of France is"
MOST_STOPS = 80
# Its statistics take longer than all the rest.
SLOWER = ("rome",)
MILLISECONDS = 600_000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BROWSER, reason="no Chromium here (Debian: apt install chromium)"),
]
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
pytest.importorskip("gradio", reason="the extra `app` is not installed")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, lm: LanguageModel) -> Path:
    """A folder with one run."""
    folder = tmp_path_factory.mktemp("runs")
    spec = RunSpec(
        editor={"name": "ultraedit"},
        benchmark={"name": "pocketedit", "limit": 2},
        ask={"roles": ("reliability", "locality")},
    )
    runner.run_all([spec], lm=lm, folder=folder)
    return folder


@pytest.fixture(scope="module")
def address(lm: LanguageModel, runs: Path) -> Generator[str]:
    workspace = Workspace(lm)
    with open_app(workspace, runs=runs) as opened:
        yield opened
    workspace.close()


@pytest.fixture(scope="module")
def browser() -> Generator[object]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"]
        )
        yield opened
        opened.close()


@pytest.fixture
def page(browser, address: str) -> Generator[object]:
    """The app as it is first seen; afterwards every request has gone to this machine."""
    context = browser.new_context(viewport={"width": 1200, "height": 900}, accept_downloads=True)
    context.set_default_timeout(MILLISECONDS)
    requests: list[str] = []
    context.on("request", lambda request: requests.append(request.url))
    opened = context.new_page()
    opened.goto(address)
    opened.wait_for_selector("#correct-prompt")
    opened.wait_for_function("document.querySelector('#correct-status[role=status]')")
    yield opened
    context.close()
    own = urlsplit(address).netloc
    foreign = [
        url
        for url in requests
        if urlsplit(url).scheme not in ("data", "blob") and urlsplit(url).netloc != own
    ]
    assert requests
    assert not foreign


def go_to(page, selector: str, *, back: bool = False) -> None:
    """Press Tab until an element that fits has the focus."""
    for _ in range(MOST_STOPS):
        page.keyboard.press("Shift+Tab" if back else "Tab")
        if page.evaluate("given => document.activeElement.matches(given)", selector):
            return
    pytest.fail(f"{selector} is not reached by Tab")


def open_page(page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).focus()
    page.keyboard.press("Enter")
    page.wait_for_function(
        "name => document.querySelector('[role=tab][aria-selected=true]').innerText.trim() == name",
        arg=name,
    )


def wait_for(page, place: str, text: str) -> None:
    page.wait_for_function(
        "([place, text]) => document.querySelector(place).innerText.includes(text)",
        arg=[place, text],
    )


def find_barriers(page) -> list[str]:
    """Return what axe finds serious or critical."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is missing")
    found = axe.Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {node['html'][:200]} {node['failureSummary'][:300]}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


def keep_picture(page, name: str) -> None:
    if folder := os.environ.get("CORRIGENDA_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def test_a_fact_is_corrected_exported_and_undone_by_keyboard(page, tmp_path: Path) -> None:
    go_to(page, "#correct-prompt :is(input, textarea)")
    page.keyboard.type(PROMPT)
    page.keyboard.press("Enter")
    wait_for(page, "#correct-result", "Paris")
    go_to(page, "#correct-target :is(input, textarea)")
    page.keyboard.type("Rome")
    go_to(page, "#correct-guard input")
    page.keyboard.press("Space")
    go_to(page, ".label-wrap")
    page.keyboard.press("Enter")
    go_to(page, "#correct-method input")
    page.keyboard.press("Control+a")
    page.keyboard.type("ft-m")
    page.keyboard.press("Enter")
    go_to(page, "#correct-correct")
    page.keyboard.press("Enter")
    wait_for(page, "#correct-status", "Corrected: 1: The capital of France is -> Rome")
    shown = page.inner_text("#correct-result")
    assert "paraphrase" in shown
    assert page.input_value("#correct-layer :is(input, textarea)") == ""
    assert "layers.0." not in shown, "the block of the preset"
    assert find_barriers(page) == []
    keep_picture(page, "correct")
    go_to(page, "#correct-export")
    page.keyboard.press("Enter")
    page.wait_for_selector("#correct-link a")
    go_to(page, "#correct-link a")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    file = tmp_path / "corrections.safetensors"
    download.value.save_as(file)
    with cg.load_patch(file).apply(lm := cg.load("pocket")):
        assert cg.answer(lm, PROMPT) == "Rome"
    go_to(page, "#correct-undo", back=True)
    page.keyboard.press("Enter")
    wait_for(page, "#correct-status", "Undone, bit for bit")
    go_to(page, "#correct-ask", back=True)
    page.keyboard.press("Enter")
    wait_for(page, "#correct-result", "Paris")


def test_bad_input_is_told_with_its_code(page) -> None:
    go_to(page, "#correct-prompt :is(input, textarea)")
    page.keyboard.type("It is said that the answer is")
    go_to(page, "#correct-target :is(input, textarea)")
    page.keyboard.type("Rome")
    page.keyboard.press("Enter")
    page.wait_for_selector("#correct-status [role=alert]")
    assert "CG104 AmbiguousSubject" in page.inner_text("#correct-status")


def test_where_and_compare_show_maps_and_tables(page) -> None:
    for kind in ("where", "compare"):
        open_page(page, kind.capitalize())
        go_to(page, f"#{kind}-prompt :is(input, textarea)")
        page.keyboard.type(PROMPT)
        if kind == "compare":
            go_to(page, "#compare-target :is(input, textarea)")
            page.keyboard.type("Rome")
            for name in SLOWER:
                go_to(page, f"#compare-methods input[name={name}]")
                page.keyboard.press("Space")
        go_to(page, "#where-trace" if kind == "where" else "#compare-compare")
        page.keyboard.press("Enter")
        page.wait_for_selector(f"#{kind}-result table")
        if kind == "compare":
            wait_for(page, "#compare-status", "2 of 2")
        assert find_barriers(page) == []
        keep_picture(page, kind)
    cell = page.locator("#where-result td[title]").first
    assert "block 0: indirect effect" in str(cell.get_attribute("title"))


def test_the_report_of_a_run_is_opened_by_keyboard(page) -> None:
    pytest.importorskip("matplotlib", reason="a report needs the extra `report`")
    open_page(page, "Runs")
    go_to(page, "#runs-show")
    page.keyboard.press("Enter")
    page.wait_for_selector("#runs-result a")
    assert find_barriers(page) == []
    keep_picture(page, "runs")
    go_to(page, "#runs-result a")
    with page.context.expect_page() as opened:
        page.keyboard.press("Enter")
    opened.value.wait_for_load_state()
    assert "ultraedit" in opened.value.inner_text("body")
    keep_picture(opened.value, "report")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_without_barriers_on_a_small_screen(page, scheme: str) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme=scheme)
    page.reload()
    page.wait_for_selector("#correct-status[role=status]", state="attached")
    for name in PAGES:
        open_page(page, name)
        assert find_barriers(page) == [], name
        keep_picture(page, f"small-{scheme}-{name.lower()}")
        wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        assert not page.evaluate(wide), f"{name} is wider than the screen"
