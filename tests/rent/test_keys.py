"""The key pair is never lost or overwritten, and its private half goes nowhere."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import asyncssh
import pytest
from pydantic import SecretStr

from helpers.errors import CourseError
from helpers.rent import keys


@pytest.fixture
def fresh(settings, tmp_path):
    """Settings with a key path where nothing is yet."""
    return settings.model_copy(update={"ssh_key": tmp_path / "dot-ssh" / "id_course"})


def test_new_key_is_private_and_openssh_reads_it(fresh):
    """0600 in 0700, and ssh-keygen derives the same public key from it."""
    public = keys.ensure_key(fresh)
    assert fresh.ssh_key.stat().st_mode & 0o777 == 0o600
    assert fresh.ssh_key.parent.stat().st_mode & 0o777 == 0o700
    derived = subprocess.run(
        ["ssh-keygen", "-y", "-f", fresh.ssh_key], capture_output=True, text=True, check=True
    )
    assert derived.stdout.split()[:2] == public.split()[:2]


def test_existing_key_is_kept(fresh):
    """Asking again returns the same pair."""
    first = keys.ensure_key(fresh)
    content = fresh.ssh_key.read_bytes()
    assert keys.ensure_key(fresh) == first
    assert fresh.ssh_key.read_bytes() == content


def test_lone_private_key_is_not_replaced(fresh):
    """When only the .pub is missing the sentence says how to derive it; nothing is written."""
    keys.ensure_key(fresh)
    content = fresh.ssh_key.read_bytes()
    fresh.ssh_key.with_name("id_course.pub").unlink()
    with pytest.raises(CourseError, match="ssh-keygen -y"):
        keys.ensure_key(fresh)
    assert fresh.ssh_key.read_bytes() == content


def test_private_key_given_for_a_public_one_is_caught(fresh):
    """The classic mistake: the private key must not be sent anywhere."""
    keys.ensure_key(fresh)
    with pytest.raises(CourseError, match="holds a private key") as caught:
        keys.read_public_key(fresh.ssh_key)
    assert fresh.ssh_key.read_text().splitlines()[1] not in str(caught.value)


def test_nonsense_is_no_public_key(tmp_path):
    """A file that is no key is named as such."""
    (tmp_path / "x.pub").write_text("hello")
    with pytest.raises(CourseError, match="not an OpenSSH public key"):
        keys.read_public_key(tmp_path / "x.pub")


def write(settings, private: bytes | None, public: bytes | None) -> None:
    """Put the halves of a pair where the course looks for them."""
    settings.ssh_key.parent.mkdir(mode=0o700)
    for data, path in ((private, settings.ssh_key), (public, f"{settings.ssh_key}.pub")):
        if data is not None:
            Path(path).write_bytes(data)
            Path(path).chmod(0o600)


@pytest.mark.parametrize("form", ["rfc4716", "pkcs8-pem"])
def test_a_public_half_of_another_form_is_told_and_mended(fresh, form):
    """PuTTYgen's and OpenSSL's forms have several lines: no machine would take them."""
    pair = asyncssh.generate_private_key("ssh-ed25519")
    write(fresh, pair.export_private_key("openssh"), pair.export_public_key(form))
    with pytest.raises(CourseError, match="not an OpenSSH public key") as told:
        keys.ensure_key(fresh)
    subprocess.run(told.value.hint.partition(": ")[2], shell=True, check=True)
    assert keys.ensure_key(fresh).startswith("ssh-ed25519 ")


@pytest.mark.parametrize(("kind", "phrase"), [("ssh-ed25519", None), ("ssh-rsa", "secret")])
def test_pkcs8_is_told_and_mended(fresh, kind, phrase):
    """OpenSSL's and Azure's form: the login would fail on a machine that is paid already."""
    pair = asyncssh.generate_private_key(kind)
    write(fresh, pair.export_private_key("pkcs8-pem", phrase), pair.export_public_key())
    with pytest.raises(CourseError, match=r"PKCS#8's form") as told:
        keys.ensure_key(fresh)
    words = told.value.hint.partition(": ")[2].replace("python", sys.executable, 1)
    subprocess.run(words, shell=True, check=True, input=f"{phrase or ''}\n", text=True)
    assert keys.ensure_key(fresh).startswith(kind)
    assert fresh.ssh_key.stat().st_mode & 0o777 == 0o600


def test_halves_that_do_not_fit_are_told_and_mended(fresh):
    """A pair copied half: the machine would know a key that we do not have."""
    one, other = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    write(fresh, one.export_private_key("openssh"), other.export_public_key())
    with pytest.raises(CourseError, match="is not the public half of") as told:
        keys.ensure_key(fresh)
    subprocess.run(told.value.hint.partition(": ")[2], shell=True, check=True)
    assert keys.ensure_key(fresh).split()[1] == one.export_public_key().split()[1].decode()


PAIR = asyncssh.generate_private_key("ssh-ed25519")
PPK = b"PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\nComment: me\nPublic-Lines: 2\nAAAA\n"


@pytest.mark.parametrize(
    ("private", "told", "mends"),
    [
        (None, "No such file", "mv "),
        (PPK, "PuTTY's form", "puttygen "),
        (
            PAIR.export_private_key("openssh", "secret", rounds=1),
            "protected by a passphrase",
            "ssh-add ",
        ),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n", "cannot be opened", "ssh-keygen -y"),
        (b"", "cannot be opened", "ssh-keygen -y"),
    ],
)
def test_a_private_half_that_opens_nothing_is_told(fresh, private, told, mends):
    """Each with the command that helps, and nothing of the key."""
    write(fresh, private, PAIR.export_public_key())
    with pytest.raises(CourseError, match=told) as caught:
        keys.ensure_key(fresh)
    assert mends in caught.value.hint and "AAAA" not in str(caught.value)


LOCKED = PAIR.export_private_key("openssh", "open sesame", rounds=1)


def test_the_right_passphrase_and_the_wrong_one(fresh):
    """SSH_PASSPHRASE is tried here already, and never shown."""
    write(fresh, LOCKED, PAIR.export_public_key())
    assert keys.ensure_key(fresh.model_copy(update={"ssh_passphrase": SecretStr("open sesame")}))
    with pytest.raises(CourseError, match="cannot be opened") as caught:
        keys.ensure_key(fresh.model_copy(update={"ssh_passphrase": SecretStr("close sesame")}))
    assert "sesame" not in str(caught.value)


def test_a_locked_key_in_the_agent_is_usable(fresh, monkeypatch):
    """`ssh-add` is what the sentence asks for: it must then be enough."""
    write(fresh, LOCKED, PAIR.export_public_key())
    known = SimpleNamespace(get_base64=lambda: PAIR.export_public_key().split()[1].decode())
    monkeypatch.setattr("paramiko.Agent", lambda: SimpleNamespace(get_keys=lambda: [known]))
    assert keys.ensure_key(fresh).startswith("ssh-ed25519")
