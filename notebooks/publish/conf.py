"""Sphinx's settings for the reading site, which website.py builds."""

import json
import re

project = "Serving an LLM from a rented GPU"
author = "the course's authors"
html_title = project
extensions = [
    "myst_nb",
    "sphinx_copybutton",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]

nb_execution_mode = "off"  # the outputs are the committed ones
nb_merge_streams = True
nb_output_stderr = "error"
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_use_rtype = False

html_theme = "sphinx_book_theme"
html_favicon = "../../assets/icon.svg"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system
html_theme_options = {
    "home_page_in_toc": True,
    "navbar_persistent": [],  # one search field is enough: the sidebar's
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,  # each notebook has a link of its own, see told()
    "use_fullscreen_button": False,
}
html_show_sourcelink = False
html_show_copyright = False
html_last_updated_fmt = None
# Only what is typed: neither the output nor a prompt is copied.
copybutton_selector = (
    "div.cell_input pre, div.highlight-bash pre, div.highlight-python pre"
)


def told(app, name: str, source: list[str]) -> None:
    """A notebook as the site shows it.

    Alternative texts stand where myst-nb looks for them, empty outputs are dropped, and
    instead of the links to its neighbours, which each page has at its end, the notebook
    can be downloaded.
    """
    if app.env.doc2path(name).suffix != ".ipynb":
        return
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        outputs = cell.get("outputs", [])
        for output in outputs:
            if alt := output.get("metadata", {}).get("image/png", {}).get("alt"):
                cell["metadata"]["mystnb"] = {"image": {"alt": alt}}
        if outputs:
            cell["outputs"] = [o for o in outputs if not is_blank(o)]
    first, *_, last = notebook["cells"]
    first["source"] = f"{{download}}`Download this notebook <{name}.ipynb>`"
    last["source"] = ""
    text = json.dumps(notebook)  # a text of assets/ is a file to download, not a page
    source[0] = re.sub(r"\]\((\.\./assets/[^)]+\.md)\)", r"](path:\1)", text)


def is_blank(output: dict) -> bool:
    """A progress line that was taken back leaves an output without a word."""
    data = output.get("data", {})
    return list(data) == ["text/plain"] and not "".join(data["text/plain"]).strip()


def setup(app) -> dict:
    """Connect the above to Sphinx."""
    app.connect("source-read", told)
    return {"parallel_read_safe": True}
