"""The file of a run: its name, its first line, and a disk that is full."""

import errno
import json

from helpers.endpoint import Endpoint
from helpers.load.files import RunFile, header, new_path
from helpers.records import Run


def test_a_header_tells_the_run_and_no_secret(tmp_path):
    """Neither a key nor a password in the address gets into the file."""
    endpoint = Endpoint(
        base_url="https://me:pl4nted-w0rd@api.example/v1?key=pl4nted", model="m", api_key="pl4nted"
    )
    spec = {"base_url": endpoint.base_url, "api_key": endpoint.api_key, "arrivals": {"users": 2}}
    file = RunFile(tmp_path / "new" / "run.jsonl", header(endpoint, spec, "two users", 1))
    file.keep(b'{"type":"end","ended":"complete"}\n')
    file.close()
    run = Run.read(file.path)
    assert "pl4nted" not in file.path.read_text()
    assert run.header["endpoint"]["base_url"] == "https://api.example/v1"
    assert (run.label, run.users, run.title) == ("two users", 2, "m")


def test_a_new_file_is_named_by_time_and_label(monkeypatch, tmp_path):
    """In the reader's folder of runs, in the order of their beginning, without odd letters."""
    monkeypatch.setenv("RUNS_DIR", str(tmp_path))
    first, second = new_path("8 users, 2 s think time"), new_path("../../secret: ü?")
    assert first.parent == second.parent == tmp_path and first.name[:8].isdigit()
    assert first.name.endswith("_8-users--2-s-think-time.jsonl")
    assert second.name.endswith("_secret--ü.jsonl")


def test_a_full_disk_leaves_what_was_written(tmp_path):
    """The problem is kept for the run to tell, and later lines are dropped quietly."""
    file = RunFile(tmp_path / "run.jsonl", {"label": "full"})

    class Full:
        closed = False

        def write(self, line):
            raise OSError(errno.ENOSPC, "No space left on device")

    whole, file.file = file.file, Full()
    file.add("server", {})
    file.add("server", {})
    assert file.problem.errno == errno.ENOSPC
    file.file = whole
    file.close()
    file.add("server", {"too": "late"})
    assert [json.loads(line)["type"] for line in file.path.read_text().splitlines()] == ["run"]


def test_requests_tokens_and_failures_are_counted(capsys, tmp_path):
    """From the lines as they come; what is no request, or was cut by a stop, does not count."""
    file = RunFile(tmp_path / "run.jsonl", {"label": "2 users", "requests": 3}, shown=True)
    for cause, tokens in (("", 5), ("timeout", 2), ("", 7), ("interrupted", 0)):
        entry = {"type": "request", "cause": cause, "output_tokens": tokens}
        file.keep(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
    file.keep(b'{"type":"end","ended":"complete"}\n')
    file.keep(b'{"type":"ready","error":""}\n')
    file.close()
    assert "2 users: 3 of 3 requests, 14 output tokens, 1 failed" in capsys.readouterr().out
    assert len(file.path.read_text().splitlines()) == 1 + 5
