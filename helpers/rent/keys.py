"""The reader's SSH key pair, and how it logs in to an instance.

The pair is made when there is none and never overwritten, and its private half is kept. It logs in
only to the machine that an instance was before.
"""

import contextlib
import os
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import paramiko
from filelock import FileLock

from helpers.errors import CourseError
from helpers.rent.market import Instance
from helpers.settings import Settings

TIMEOUT_S = 15.0  # of each step of a login

_REWRITE = "a.read_private_key(FILE, input('passphrase, if any: ') or None).write_private_key(FILE)"
_FORMS = {  # of private keys that cannot be used: what is said of them, and what mends them
    "PuTTY-User-Key-File": ("is in PuTTY's form", "puttygen FILE -O private-openssh -o FILE"),
    "BEGIN PRIVATE KEY": (
        "is in PKCS#8's form, which not every SSH program reads",
        f'rewrite it, unprotected: python -c "import asyncssh as a; {_REWRITE}"',
    ),
    "": ("cannot be opened", "see why: ssh-keygen -y -f FILE; SSH_PASSPHRASE in .env unlocks it"),
}
_LOCKED = ("is protected by a passphrase", "ssh-add FILE, or set SSH_PASSPHRASE in .env")


def ensure_key(settings: Settings) -> str:
    """The course's public key, from a new Ed25519 pair when there is none yet.

    The same as ``ssh-keygen -t ed25519 -f PATH``. An existing file is never overwritten.

    Returns:
        The public key: the one line that goes to the provider and into ``authorized_keys``.

    Raises:
        CourseError: when the files are not a usable pair, with the command that mends them: told
            here, before money is spent on a machine that would never let us in.
    """
    private = settings.ssh_key
    public = Path(f"{private}.pub")
    if not private.exists() and not public.exists():
        private.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = asyncssh.generate_private_key("ssh-ed25519", comment="llm-serving-course")
        # "x": never over a file that exists; 0600 from the first byte on.
        with open(private, "xb", opener=lambda p, flags: os.open(p, flags, 0o600)) as file:
            file.write(key.export_private_key("openssh", passphrase=passphrase(settings)))
        public.write_bytes(key.export_public_key())
    halves = _public_halves(private, passphrase(settings))
    line = read_public_key(public)
    if line.split()[1] not in halves:
        raise CourseError(f"{public} is not the public half of {private}", _derive(public))
    return line


def passphrase(settings: Settings) -> str | None:
    """What opens the private key, if it is protected."""
    return settings.ssh_passphrase.get_secret_value() if settings.ssh_passphrase else None


def read_public_key(path: Path) -> str:
    """A public key file's line, after a check that it is one.

    Raises:
        CourseError: when the file is missing, holds a private key, or is not one OpenSSH line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace").strip()
        if "PRIVATE KEY" in text:
            what = f"{path} holds a private key: it never leaves this machine"
            raise CourseError(what, f"use the file that ends in .pub ({path}.pub)")
        asyncssh.import_public_key(text)
    except (OSError, asyncssh.KeyImportError):
        text = ""
    if len(text.splitlines()) != 1:  # PuTTY's and OpenSSL's forms have several
        what = f"{path} is missing, or not an OpenSSH public key: one line that starts with ssh-"
        raise CourseError(what, _derive(path))
    return text


def _derive(public: Path) -> str:
    private = shlex.quote(str(public.with_suffix("") if public.suffix == ".pub" else public))
    return f"derive it from the private one: ssh-keygen -y -f {private} > {private}.pub"


def _public_halves(private: Path, phrase: str | None) -> list[str]:
    """Public halves of what we can log in with: the file's, or the agent's when it is locked."""
    locked, text = False, ""
    for kind in (paramiko.Ed25519Key, paramiko.RSAKey, paramiko.ECDSAKey):
        try:
            text = private.read_text(errors="replace")
            return [kind.from_private_key_file(str(private), phrase).get_base64()]
        except paramiko.PasswordRequiredException:
            locked = True
        except (paramiko.SSHException, ValueError):
            pass  # it is of another kind, or of none
        except OSError as error:
            what = f"the private key {private} cannot be read: {error.strerror}"
            hint = f"put it back, or make a new pair: mv {private}.pub {private}.old"
            raise CourseError(what, hint) from None
    if locked and (known := [key.get_base64() for key in paramiko.Agent().get_keys()]):
        return known
    known_form = next(form for form in _FORMS if form in text.replace("ENCRYPTED ", ""))
    what, hint = _LOCKED if locked else _FORMS[known_form]
    raise CourseError(f"the private key {private} {what}", hint.replace("FILE", f"'{private}'"))


# -- logging in ----------------------------------------------------------------------------


def known_hosts(settings: Settings) -> Path:
    """The course's own ``known_hosts``, so that the reader's stays clean."""
    return settings.ssh_key.with_name(settings.ssh_key.name + "_known_hosts")


def alias(instance: Instance) -> str:
    """The name a machine's host key is kept under: addresses and ports are reused, ids are not."""
    return f"{instance.provider}-{instance.id}-{int(instance.created)}"


@contextlib.contextmanager
def connect(instance: Instance, settings: Settings) -> Iterator[paramiko.SSHClient]:
    """A ``paramiko`` client logged in to an instance, closed on leaving.

    Raises:
        CourseError: when the login fails, with the usual reason and its remedy.
    """
    ensure_key(settings)  # tells what is wrong with the key better than a failed login does
    known = known_hosts(settings)
    address = (instance.ssh_host, instance.ssh_port)
    with paramiko.SSHClient() as client:
        # Asked at first contact only: the key is written down then, and no other accepted later.
        client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
        try:
            with FileLock(f"{known}.lock"):  # two notebooks may meet two machines at once
                _drop_cut_lines(known)
                client.load_host_keys(str(known))
                client.connect(
                    alias(instance),  # what its key is looked up by: the address is the socket's
                    username=instance.ssh_user,
                    sock=socket.create_connection(address, TIMEOUT_S),
                    key_filename=str(settings.ssh_key),
                    passphrase=passphrase(settings),
                    look_for_keys=False,
                    timeout=TIMEOUT_S,
                    auth_timeout=TIMEOUT_S,
                )
        except (OSError, paramiko.SSHException) as error:
            raise CourseError(*_told(error, instance, settings)) from None
        yield client


def _drop_cut_lines(known: Path) -> None:
    """A crash or a full disk may cut a line, and one such line would end every login."""
    known.touch(0o600)
    text, kept = known.read_text(errors="replace"), ""
    for line in text.splitlines(keepends=True):
        with contextlib.suppress(paramiko.SSHException, paramiko.hostkeys.InvalidHostKey):
            kept += line if paramiko.hostkeys.HostKeyEntry.from_line(line) else ""
    if kept != text:
        known.write_text(kept)


def _told(error: Exception, instance: Instance, settings: Settings) -> tuple[str, str]:
    """A failed login: what, and what to do."""
    if isinstance(error, paramiko.BadHostKeyException):
        what = f"the host key of {alias(instance)} has changed: this may be another machine"
        return what, "do not send it anything; destroy the instance and rent another one"
    if isinstance(error, paramiko.AuthenticationException):
        what = f"Permission denied (publickey): {instance.id} does not know {settings.ssh_key}.pub"
        return what, "register the key before renting: a machine keeps the keys it was made with"
    what = f"SSH to {instance.ssh_host}:{instance.ssh_port} failed: {error}"
    return what, "wait, if it is fresh; `python -m helpers status` tells whether it is still rented"
