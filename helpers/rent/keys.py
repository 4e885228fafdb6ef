"""The reader's SSH key pair: made when there is none, never overwritten, the private half kept."""

import os
from pathlib import Path

import asyncssh

from helpers.errors import CourseError
from helpers.settings import Settings


def ensure_key(settings: Settings) -> str:
    """The course's public key, from a new Ed25519 pair when there is none yet.

    The same as ``ssh-keygen -t ed25519 -f PATH``. An existing file is never overwritten.

    Returns:
        The public key: the one line that goes to the provider and into ``authorized_keys``.

    Raises:
        CourseError: when the files are not a usable pair.
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
    return read_public_key(public)


def passphrase(settings: Settings) -> str | None:
    """What opens the private key, if it is protected."""
    return settings.ssh_passphrase.get_secret_value() if settings.ssh_passphrase else None


def read_public_key(path: Path) -> str:
    """A public key file's line, after a check that it is one.

    Raises:
        CourseError: when the file is missing, holds a private key, or is no key at all.
    """
    try:
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        raise CourseError(
            f"there is no public key at {path}",
            f"derive it from the private one: ssh-keygen -y -f {path.with_suffix('')} > {path}",
        ) from None
    if "PRIVATE KEY" in text:
        raise CourseError(
            f"{path} holds a private key: it never leaves this machine",
            f"use the file that ends in .pub ({path}.pub)",
        )
    try:
        asyncssh.import_public_key(text)
    except asyncssh.KeyImportError:
        raise CourseError(
            f"{path} is not an OpenSSH public key",
            "it is one line that starts with ssh-ed25519 or ssh-rsa",
        ) from None
    return text
