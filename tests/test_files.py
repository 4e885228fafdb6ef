"""A file that others read while it is written, and that a killed process leaves whole."""

import subprocess
import sys
import threading

import pytest

from helpers import files

WRITES = """
import pathlib, sys
from helpers import files
turn = 0
print("began", flush=True)
while True:
    turn += 1
    files.replace(pathlib.Path(sys.argv[1]), f"{turn}".zfill(10) * 50_000)
"""


@pytest.mark.parametrize("text", ["ä key\n", b"\0pem"])
def test_it_is_for_its_owner_alone_and_nothing_is_left_beside_it(tmp_path, text):
    """Keys stand in such files; and whoever had the old one open goes on reading that."""
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o644)
    with path.open() as old:
        files.replace(path, text)
        assert old.read() == "old"
    assert path.read_bytes() == (text.encode() if isinstance(text, str) else text)
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    """Half a ledger would mean that nobody knows what is rented."""
    path = tmp_path / "file"
    command = [sys.executable, "-c", WRITES, path]
    for _ in range(5):
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert writer.stdout.readline() == "began\n"
        while not path.exists() or not whole(path):
            pass
        writer.kill()
        writer.communicate()
        assert whole(path)


def test_two_writers_do_not_mix(tmp_path):
    """A customer's key is made in a notebook while another one is, in a terminal."""
    path = tmp_path / "file"
    texts = [f"{n}" * 1_000_000 for n in range(4)]
    writers = [threading.Thread(target=files.replace, args=(path, text)) for text in texts]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert path.read_text() in texts


def whole(path) -> bool:
    text = path.read_text()
    return text == text[:10] * 50_000
