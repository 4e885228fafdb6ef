"""A person's way through the course, in Chromium: JupyterLab and the reading site."""

import functools
import http.server
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Page, expect, sync_playwright
from support.chromium import CHROMIUM, IN_JUPYTERLAB
from support.pasting import with_everything_tried
from support.waiting import eventually

from helpers import rehearsal
from helpers.settings import PROJECT

pytestmark = pytest.mark.browser
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
CHAPTERS = {path.stem: path for path in sorted((PROJECT / "notebooks").glob("[0-9][0-9]_*.ipynb"))}
TOKEN = "of-this-test"
RUN_S = 600  # for the whole notebook, on a busy machine


@pytest.fixture(scope="module")
def chromium():
    """Debian's browser, headless."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium) -> Page:
    """A fresh window; ``page.complaints`` collects errors of the console and failed answers."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    complaints = page.complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda asked: note_failed(asked, complaints))
    page.on("response", lambda got: got.status < 400 or complaints.append(f"404: {got.url}"))
    page.on("console", lambda line: line.type == "error" and complaints.append(line.text))
    yield page
    context.close()


def note_failed(asked, complaints: list[str]) -> None:
    """What is cut off because the reader goes on to another page has not failed."""
    if asked.failure != "net::ERR_ABORTED":
        complaints.append(f"failed: {asked.url}")


# -- JupyterLab ----------------------------------------------------------------------------


@pytest.fixture
def notebook():
    """The notebook that is run here, with its solutions, and with its marked cells typed."""
    return with_everything_tried(nbformat.read(CHAPTERS[IN_JUPYTERLAB], as_version=4))


@pytest.fixture
def lab(notebook, own_rehearsal, tmp_path, monkeypatch):
    """JupyterLab on that notebook without outputs; returns its address."""
    folder = tmp_path / "course"
    shutil.copytree(PROJECT / "assets", folder / "assets")
    (folder / "notebooks").mkdir()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
    nbformat.write(notebook, folder / "notebooks" / f"{IN_JUPYTERLAB}.ipynb")
    wished = {
        "notebook-extension/tracker": {"windowingMode": "none"},  # all cells are in the page
        "apputils-extension/notification": {"fetchNews": "false"},
    }
    for name, settings in wished.items():
        file = tmp_path / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(settings))
    for kind in ("CONFIG", "DATA", "RUNTIME"):
        monkeypatch.setenv(f"JUPYTER_{kind}_DIR", str(tmp_path / kind.lower()))
    options = {
        "ServerApp.port": 0,
        "IdentityProvider.token": TOKEN,
        "ServerApp.root_dir": folder,
        "ServerApp.allow_root": True,
        "ServerApp.open_browser": False,
        "LabApp.user_settings_dir": tmp_path / "settings",
        "LabApp.workspaces_dir": tmp_path / "workspaces",
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
    }
    line = [sys.executable, "-m", "jupyterlab"]
    log = (tmp_path / "lab.log").open("wb")
    server = subprocess.Popen(
        [*line, *(f"--{name}={value}" for name, value in options.items())],
        stdout=log, stderr=log, cwd=folder,
    )  # fmt: skip
    try:
        url = eventually(lambda: server_url(tmp_path / "runtime"), 60)
        assert url, (tmp_path / "lab.log").read_text()
        yield url
    finally:
        server.terminate()  # its kernels end with it
        server.wait(30)
        log.close()


def server_url(runtime: Path) -> str | None:
    """Where the server listens, once it says so."""
    for file in runtime.glob("jpserver-*.json"):
        return json.loads(file.read_text())["url"]
    return None


def test_a_notebook_runs_from_the_menu(lab, notebook, page, own_rehearsal, tmp_path):
    """Run All Cells, with the mouse: every cell ends without an error and the plots are there."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    committed = nbformat.read(CHAPTERS[IN_JUPYTERLAB], as_version=4).cells
    outputs = [output for cell in committed for output in cell.get("outputs", [])]
    plots = sum("image/png" in output.get("data", {}) for output in outputs)
    page.goto(f"{lab}lab/tree/notebooks/{IN_JUPYTERLAB}.ipynb?token={TOKEN}")
    panel = page.locator(".jp-NotebookPanel:visible")
    expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible(timeout=90_000)
    assert panel.locator(".jp-OutputArea-output img").count() == 0
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    complaints = panel.locator(
        '[data-mime-type$="vnd.jupyter.error"], [data-mime-type$="vnd.jupyter.stderr"]'
    )
    prompts = panel.locator(".jp-CodeCell .jp-InputPrompt")
    wanted = [f"[{count}]:" for count in range(1, len(code) + 1)]
    eventually(lambda: complaints.count() or prompts.all_inner_texts() == wanted, RUN_S)
    assert complaints.all_inner_texts() == []
    assert prompts.all_inner_texts() == wanted
    figures = panel.locator(".jp-OutputArea-output img")
    assert figures.count() >= plots > 0
    for figure in figures.all():
        figure.scroll_into_view_if_needed()
        assert figure.evaluate("image => image.complete && image.naturalWidth") > 300
    drawings = panel.locator(".jp-MarkdownCell img").all()
    assert drawings and all(one.evaluate("image => image.naturalWidth") for one in drawings)
    figures.nth(2).scroll_into_view_if_needed()
    page.screenshot(path=tmp_path / "jupyterlab.png")
    assert not rehearsal.holds_rentals(own_rehearsal)


# -- the reading site ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(site):
    """The reading site's address, served from this process."""
    handler = functools.partial(Quiet, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *_) -> None:
        """No line for each request."""


# What reaches beyond its column though nothing around it scrolls; code that is cut.
TOO_WIDE = """article => [...article.querySelectorAll("p, table, img, pre, details")]
    .filter(tag => tag.getBoundingClientRect().right > article.getBoundingClientRect().right + 1)
    .filter(tag => { while (tag !== article && !/auto|scroll/.test(getComputedStyle(tag).overflowX))
                         tag = tag.parentElement;
                     return tag === article })
    .map(tag => tag.outerHTML.slice(0, 80))"""
CUT = """all => all.filter(code => code.scrollWidth > code.clientWidth)
    .map(code => code.textContent.slice(0, 80))"""


def test_the_site_is_read_from_first_to_last_page(address, page, tmp_path):
    """By clicking "next"; each page loads whole, without a complaint of the browser."""
    page.goto(f"{address}/index.html")
    read = []
    while True:
        page.wait_for_load_state("networkidle")
        read.append(Path(page.url).stem)
        assert page.complaints == [], page.url
        for width in (390, 1200):  # of a phone, of a small laptop
            page.set_viewport_size({"width": width, "height": 900})
            wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            assert wide <= 0, f"{page.url} is {wide} pixels too wide for {width}"
            assert page.locator("article").evaluate(TOO_WIDE) == [], f"{page.url} at {width}"
            page.screenshot(path=tmp_path / f"{len(read)}-{width}.png", full_page=True)
        assert page.locator("div.cell_input pre").evaluate_all(CUT) == [], page.url
        assert page.locator("article img").evaluate_all("all => all.every(i => i.naturalWidth)")
        onward = page.locator("a.right-next")
        if not onward.count():
            break
        onward.click()
    assert read == ["index", *CHAPTERS, "glossary", "api"]


def test_code_is_copied_by_its_button(address, page):
    """What lands in the clipboard is the code, without prompts or outputs."""
    page.goto(f"{address}/04_throughput.html")
    cell = page.locator("div.cell_input", has_text="# Works anywhere").first
    cell.hover()
    cell.locator("button.copybtn").click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.strip() == cell.locator("pre").inner_text().strip()
    assert copied.startswith("# Works anywhere.") and "import" in copied


def test_search_finds_a_word_of_the_course(address, page):
    """Typed into the field, and answered by this site alone."""
    page.goto(f"{address}/00_what_do_we_need.html")
    page.keyboard.press("Control+k")
    page.keyboard.type("goodput")
    page.keyboard.press("Enter")
    found = page.locator("#search-results li a", has_text="04 - How many customers")
    expect(found.first).to_be_visible(timeout=15_000)
    found.first.click()
    expect(page.locator("article h1")).to_contain_text("04 - How many customers")
    assert page.complaints == []


def test_dark_mode_can_be_switched_on(address, page, tmp_path):
    """The background really is dark, and figures keep a background of their own."""
    page.emulate_media(color_scheme="light")
    page.goto(f"{address}/04_throughput.html")
    light = "+getComputedStyle(document.body).backgroundColor.match(/[0-9]+/)[0]"
    page.wait_for_function(f"{light} > 200")
    page.get_by_role("button", name="Color mode").click()
    page.get_by_role("button", name="Dark").click()
    page.wait_for_function(f"{light} < 60", timeout=5_000)
    figure = page.locator("div.cell_output img").first
    figure.scroll_into_view_if_needed()
    page.screenshot(path=tmp_path / "dark.png")
