"""Log in to an instance: with the reader's own key, and only to the machine that it was before."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import paramiko
from filelock import FileLock

from helpers.errors import CourseError
from helpers.rent.keys import ensure_key, passphrase
from helpers.rent.market import Instance
from helpers.settings import Settings

TIMEOUT_S = 15.0


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
                    banner_timeout=TIMEOUT_S,
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
