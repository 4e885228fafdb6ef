"""The key pair is never lost or overwritten, and its private half goes nowhere."""

import subprocess

import pytest

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
