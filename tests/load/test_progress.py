"""The line under a cell while a run goes on."""

import json

from helpers.load.progress import RunProgress


def test_requests_tokens_and_failures_are_counted(capsys):
    """From the lines as they come; lines that are no request do not count."""
    bar = RunProgress("2 users", 3, shown=True)
    for cause, tokens in (("", 5), ("timeout", 2), ("", 7)):
        entry = {"type": "request", "cause": cause, "output_tokens": tokens}
        bar.count(json.dumps(entry).encode() + b"\n")
    bar.count(b'{"type":"end","ended":"complete"}\n')
    bar.close()
    assert "2 users: 3 of 3 requests, 14 output tokens, 1 failed" in capsys.readouterr().out
