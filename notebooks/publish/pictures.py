"""Pictures that build.py derives: a map for each notebook, and those of README."""

import base64
import hashlib
import io
import re
from pathlib import Path

from nbformat import NotebookNode
from PIL import Image
from PIL.PngImagePlugin import PngInfo

ASSETS = Path(__file__).resolve().parents[2] / "assets"
THUMBNAIL_WIDTH = 400  # pixels

# What each notebook is about: parts (ids) of assets/map.svg, and the same in words.
HERE = {
    "00": ("market server", "the marketplace's GPUs, and the software on them"),
    "01": ("api market", "your account with the provider"),
    "02": ("tunnel sshd", "the key pair between your machine and the instance"),
    "03": ("api market tunnel sshd server", "from the offer to the first answer"),
    "04": ("load server", "simulated customers, and the server they load"),
    "05": ("load server", "the model, and the functions it asks for"),
    "06": ("instance server", "the GPU under the server, and its memory"),
    "07": ("load tunnel", "the customers, and the way to the server"),
    "08": ("market instance", "more instances, and other clouds"),
    "09": ("load market", "a day of requests, and the price of its hours"),
    "10": ("load server", "requests as real customers send them"),
    "11": ("instance server", "the options that the server is started with"),
    "12": ("server", "the model, and what it answers"),
    "13": ("api market", "the bill, and how it ends"),
}
MAP = (
    "Your machine rents through the marketplace's API, and reaches vLLM on the rented"
    " instance through an SSH tunnel. Highlighted: {}."
)
ANY_MAP = re.compile(r"!\[[^\]]*\]\(\.\./assets/(?:maps/\d\d|map)\.svg\)")


def put(path: Path, text: str) -> None:
    """Write a file if that changes it."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def chapter_map(number: str) -> str:
    """The course's map with this notebook's parts marked; returns it as markdown."""
    parts, words = HERE[number]
    rule = ", ".join(f"#{part}" for part in parts.split())
    rule += " { fill: #ffe2a8; stroke: #D55E00; stroke-width: 4 }"
    drawing = (ASSETS / "map.svg").read_text()
    head = f" Highlighted: {words}.</title>\n<style>{rule}</style>"
    put(ASSETS / "maps" / f"{number}.svg", drawing.replace("</title>", head))
    return f"![{MAP.format(words)}](../assets/maps/{number}.svg)"


def small_picture(number: str, notebook: NotebookNode) -> str:
    """A small picture made from one of the notebook's own; returns it as markdown.

    That is the figure of the cell tagged ``thumbnail``, or else the first figure, or
    else the first drawing beside the map.
    """
    shown = figures(notebook)
    path = ASSETS / "thumbnails" / f"{number}.{'png' if shown else 'svg'}"
    for other in path.parent.glob(f"{number}.*"):
        if other != path:
            other.unlink()
    if shown:
        alt, figure = first_tagged(shown, "thumbnail")
        png(path, figure, THUMBNAIL_WIDTH)
    else:
        text = "\n".join(cell.source for cell in notebook.cells)
        drawings = re.findall(r"!\[([^\]]*)\]\(\.\./assets/([\w/]+\.svg)\)", text)
        alt, drawing = min(drawings, key=lambda one: one[1].startswith("map"))
        small_svg(path, (ASSETS / drawing).read_text())
    return f"![{alt}](assets/thumbnails/{path.name})"


def readme_figure(text: str, notebooks: dict[str, NotebookNode]) -> str:
    """Write README's figure, from 04's cell tagged ``readme`` or else ``thumbnail``.

    Returns README's text, where the figure has its alternative text of today.
    """
    if not (shown := figures(notebooks["04"])):
        return text
    alt, figure = first_tagged(shown, "readme", "thumbnail")
    png(ASSETS / "throughput.png", figure)
    picture = f"![{alt}](assets/throughput.png)"
    return re.sub(r"!\[[^\]]*\]\(assets/throughput\.png\)", lambda _: picture, text)


Figure = tuple[str, bytes]  # its alternative text, and its PNG


def figures(notebook: NotebookNode) -> list[tuple[list[str], Figure]]:
    """The tags of each cell that shows a figure, and the figure."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if data := output.get("data", {}).get("image/png"):
                alt = output.metadata.get("image/png", {}).get("alt", "")
                figure = re.sub(r"[\[\]|]", " ", alt), base64.b64decode(data)
                found.append((cell.metadata.get("tags", []), figure))
    return found


def first_tagged(shown: list[tuple[list[str], Figure]], *wished: str) -> Figure:
    """The first figure whose cell has the first tag, or the next one, or no tag."""
    for tag in wished:
        for tags, figure in shown:
            if tag in tags:
                return figure
    return shown[0][1]


def png(path: Path, figure: bytes, width: int | None = None) -> None:
    """Write a figure, unless that was done: versions of Pillow may differ in bytes."""
    source = hashlib.sha256(figure + str(width).encode()).hexdigest()
    if path.exists() and Image.open(path).text.get("source") == source:
        return
    image = Image.open(io.BytesIO(figure)).convert("RGB")
    if width:
        image.thumbnail((width, width), Image.Resampling.LANCZOS)
    note = PngInfo()
    note.add_text("source", source)
    path.parent.mkdir(exist_ok=True)
    image.quantize(64).save(path, optimize=True, pnginfo=note)


def small_svg(path: Path, drawing: str) -> None:
    """The same drawing with a size of its own."""
    box = re.search(r'viewBox="0 0 (\d+) (\d+)"', drawing)
    width, height = THUMBNAIL_WIDTH, THUMBNAIL_WIDTH * int(box[2]) / int(box[1])
    size = f'<svg width="{width}" height="{height:.0f}" '
    put(path, drawing.replace("<svg ", size, 1))
