"""The line of progress: which lines are replaced by the next one, and which stay."""

import sys

import IPython.display
import pytest

from helpers.progress import Progress, fact


def told(say) -> None:
    """Two lines of waiting around a fact, and one more."""
    say("waiting")
    say("still waiting")
    fact(say, "found by its label")
    say("loading")
    say("running")


def test_a_terminal_keeps_a_fact(monkeypatch, capsys):
    """It ends its line there; what is waited for is written over."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    told(Progress())
    lines = capsys.readouterr().out.split("\n")
    shown = [line.rpartition("\r\033[K")[2].partition(" s  ")[2] for line in lines]
    assert shown == ["found by its label", "running"]


def test_a_notebook_keeps_a_fact(monkeypatch):
    """What comes next has a place of its own among the cell's outputs."""
    shown = {}

    def display(data, raw, display_id, update):
        assert raw and update == (display_id in shown)
        shown[display_id] = data["text/plain"].partition(" s  ")[2]

    monkeypatch.setitem(sys.modules, "ipykernel.kernelapp", sys)
    monkeypatch.setattr(IPython.display, "display", display)
    told(Progress())
    assert list(shown.values()) == ["found by its label", "running"]


@pytest.mark.parametrize("say", [print, Progress()], ids=["print", "a log"])
def test_elsewhere_every_line_stays(say, capsys):
    """In a log, or in what a reader gives as progress."""
    told(say)
    lines = [line.rpartition(" s  ")[2] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["waiting", "still waiting", "found by its label", "loading", "running"]
