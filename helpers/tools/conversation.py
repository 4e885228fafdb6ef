"""A conversation with tools: the chat, and every step of it with its times."""

import uuid
from dataclasses import dataclass, field
from time import perf_counter as clock
from typing import Any

import pandas

from helpers.load.client.answer import Call
from helpers.load.client.reading import Answer

WIDTH = 88
PHASES = ("deciding", "executing", "answering")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step. Times are seconds from the conversation's start.

    Args:
        phase: ``deciding`` (a request that ended in calls), ``executing`` (one call) or
            ``answering`` (a request that ended in text).
        round: number of the request, from 1.
        start_s: when it began.
        end_s: when it ended.
        what: the calls asked for, the call executed, or the answer's text.
        result: what the model was given back for an executed call.
        problem: why a call did not run, or failed; empty when all went well.
        prompt_tokens: the server's count.
    """

    phase: str
    round: int
    start_s: float
    end_s: float
    what: str
    result: str = ""
    problem: str = ""
    prompt_tokens: int = 0

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end_s - self.start_s

    def __str__(self) -> str:
        told = " -> ".join(filter(None, (self.what, self.problem or self.result)))
        text = f"{self.phase:9}  {1e3 * self.seconds:6.0f} ms  {told}"
        # No control characters: what a stranger wrote must not reach the terminal's cursor.
        text = "".join(c if c.isprintable() else " " for c in text)
        mark = "!" if self.problem else " "
        return mark + (text if len(text) < WIDTH else text[: WIDTH - 4] + "...")


@dataclass
class Conversation:
    """A conversation with tools; shown as a table of its steps.

    Args:
        messages: the whole chat, in the form in which it can be sent again.
        steps: in the order in which they ended.
        stopped: why it ended without an answer, else empty.
        began: when, on the clock of ``time.perf_counter``.
    """

    messages: list[dict]
    steps: list[Step] = field(default_factory=list)
    stopped: str = ""
    began: float = field(default_factory=clock, repr=False)

    @property
    def answer(self) -> str:
        """The model's last text, empty when there is none."""
        last = self.messages[-1]
        return last["content"] if last["role"] == "assistant" else ""

    @property
    def calls(self) -> list[Step]:
        """The calls that the model asked for, executed or not."""
        return [step for step in self.steps if step.phase == "executing"]

    @property
    def problems(self) -> list[str]:
        """What went wrong, one line each."""
        return [step.problem for step in self.steps if step.problem]

    def seconds(self, phase: str) -> float:
        """Time in a phase; calls of one round, which run at the same time, count once."""
        frame = self.frame()
        rounds = frame[frame["phase"] == phase].groupby("round")
        return float((rounds["end_s"].max() - rounds["start_s"].min()).sum())

    def frame(self) -> pandas.DataFrame:
        """One row for each step."""
        rows = [vars(step) | {"ms": round(1e3 * step.seconds)} for step in self.steps]
        return pandas.DataFrame(rows, columns=[*Step.__dataclass_fields__, "ms"])

    def add(self, phase: str, number: int, start: float, what: str, **more: Any) -> None:
        """Keep a step of round ``number`` that began at ``start`` and ends now."""
        begin, end = start - self.began, clock() - self.began
        step = Step(phase=phase, round=number, start_s=begin, end_s=end, what=what, **more)
        self.steps.append(step)

    def add_reply(self, reply: Answer, number: int, start: float) -> list[Call]:
        """Keep the model's reply, of the request sent at ``start``, as a message and as a step.

        Returns:
            Its calls, each with a new id: some servers give none, or one twice.
        """
        said = reply.message()
        message, calls = said.as_dict(), said.calls
        for call in calls:
            call.id = uuid.uuid4().hex[:9]  # Mistral wants nine
        if calls:
            message["tool_calls"] = [_sendable(call) for call in calls]
        self.messages.append(message)
        phase = "deciding" if calls else "answering"
        what = ", ".join(map(str, calls)) or said.text
        problem = "cut off at max_tokens" if reply.finish == "length" else ""
        self.add(phase, number, start, what, problem=problem, prompt_tokens=reply.prompt_tokens)
        return calls

    def __repr__(self) -> str:
        asked = next((m.get("content") for m in self.messages if m["role"] == "user"), "")
        lines = [f" asked                 {asked}"[:WIDTH], *map(str, self.steps)]
        return "\n".join(lines + ([f"!stopped: {self.stopped}"] if self.stopped else []))


def _sendable(call: Call) -> dict:
    """Return a call in a form that can be sent back: servers refuse a chat with a broken one."""
    name = call.name[:64] if call.name.isascii() and call.name.isidentifier() else "unreadable"
    return Call(call.id, name, call.arguments if call.parsed() else "{}").as_dict()
