"""The reader's SSH key pair: made when there is none, never overwritten, the private half kept."""

import os
import shlex
from pathlib import Path

import asyncssh
import paramiko

from helpers.errors import CourseError
from helpers.settings import Settings

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
