"""A conversation with tools: the model's replies read, every step kept and shown."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter as clock
from typing import TYPE_CHECKING, Any

from helpers.tools.schema import Tool

if TYPE_CHECKING:
    import pandas

WIDTH = 88
PHASES = ("deciding", "executing", "answering")


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call as the model wrote it; ``echo`` is what goes back to the server as history."""

    id: str = ""
    name: str = ""
    arguments: str = ""
    echo: dict = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One reply of the model. ``first_at`` is when its first piece came (streaming only)."""

    text: str = ""
    calls: tuple[Call, ...] = ()
    finish: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    first_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step. Times are seconds from the conversation's start.

    Args:
        phase: ``deciding`` (a request that ended in calls), ``executing`` (one call) or
            ``answering`` (a request that ended in text).
        round: number of the request, from 1.
        start_s: its begin.
        end_s: its end.
        what: the calls asked for, the call executed, or the answer's text.
        result: what the model was given back, of an executed call.
        problem: why a call did not run, or failed; empty when all went well.
        ttft_s: time to first token, of a streamed request.
        prompt_tokens: the server's count, ``cached_tokens`` of them from its prefix cache.
        cached_tokens: see there.
        output_tokens: the server's count.
        finish: the server's finish reason.
    """

    phase: str
    round: int
    start_s: float
    end_s: float
    what: str
    result: str = ""
    problem: str = ""
    ttft_s: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    finish: str = ""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end_s - self.start_s

    def __str__(self) -> str:
        text = f"{self.phase:9}  {1e3 * self.seconds:6.0f} ms  {self.what}"
        if self.phase == "executing":
            text = f"{text} -> {self.problem or self.result}"
        # No control characters: what a stranger wrote must not reach the terminal's cursor.
        text = "".join(c if c.isprintable() else " " for c in text)
        mark = "!" if self.problem else " "
        return mark + (text if len(text) < WIDTH else text[: WIDTH - 4] + "...")


@dataclass
class Conversation:
    """A conversation with tools; shown as a table of its steps.

    Args:
        messages: the whole chat, in the form in which it can be sent again.
        tools: names that were allowed.
        steps: in order of their ends.
        stopped: why it ended without an answer, else empty.
        began: the clock's time 0 of the steps.
        not_run: positions of messages that say why a call was not executed.
        show: see ``run_tools``.
    """

    messages: list[dict]
    tools: tuple[str, ...] = ()
    steps: list[Step] = field(default_factory=list)
    stopped: str = ""
    began: float = field(default=0.0, repr=False)
    not_run: set[int] = field(default_factory=set, repr=False)
    show: Callable[[str], None] | None = field(default=None, repr=False)

    @property
    def answer(self) -> str:
        """The model's last text, empty when there is none."""
        last = self.messages[-1] if self.messages else {}
        return last.get("content") or "" if last.get("role") == "assistant" else ""

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
        rounds: dict[int, list[Step]] = {}
        for step in self.steps:
            if step.phase == phase:
                rounds.setdefault(step.round, []).append(step)
        return sum(max(s.end_s for s in part) - min(s.start_s for s in part)
                   for part in rounds.values())  # fmt: skip

    def frame(self) -> "pandas.DataFrame":
        """One row a step."""
        import pandas

        names = ("round", "phase", "what", "result", "problem", "prompt_tokens", "cached_tokens",
                 "output_tokens")  # fmt: skip
        rows = [{name: getattr(step, name) for name in names} for step in self.steps]
        table = pandas.DataFrame(rows, columns=names)
        table.insert(2, "ms", [round(1e3 * step.seconds) for step in self.steps])
        return table

    def add(self, step: Step) -> None:
        """Keep a step, and show it if somebody wants to see it."""
        self.steps.append(step)
        if self.show:
            self.show(str(step))

    def add_reply(self, reply: Reply, calls: list[Call], number: int, start: float) -> None:
        """Keep the model's reply as a message and as a step."""
        message: dict[str, Any] = {"role": "assistant", "content": reply.text}
        if calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": call.echo} for call in calls
            ]
        self.messages.append(message)
        wishes = ", ".join(f"{call.name}({call.arguments})" for call in calls)
        cut = reply.finish == "length"
        self.add(
            Step(
                phase="deciding" if calls else "answering",
                round=number,
                start_s=start - self.began,
                end_s=clock() - self.began,
                what=wishes or reply.text,
                problem="cut off at max_tokens" if cut else "",
                ttft_s=None if reply.first_at is None else reply.first_at - start,
                prompt_tokens=reply.prompt_tokens,
                cached_tokens=reply.cached_tokens,
                output_tokens=reply.output_tokens,
                finish=reply.finish,
            )
        )

    def add_result(self, call: Call, text: str, *, ran: bool) -> None:
        """Keep what the model is told of a call."""
        if not ran:
            self.not_run.add(len(self.messages))
        self.messages.append({"role": "tool", "tool_call_id": call.id, "content": text})

    def has_read_foreign(self, allowed: dict[str, Tool]) -> bool:
        """Whether the chat holds a result of a tool that reads what others wrote.

        A result whose tool is not known here (from an earlier conversation) counts as one.
        """
        names: dict[str, str] = {}
        # In order: some servers give the same ids in every round.
        for position, message in enumerate(self.messages):
            for call in message.get("tool_calls") or ():
                names[call.get("id")] = (call.get("function") or {}).get("name")
            if message.get("role") in ("tool", "function") and position not in self.not_run:
                known = allowed.get(names.get(message.get("tool_call_id")))
                if known is None or known.foreign:
                    return True
        return False

    def __repr__(self) -> str:
        asked = next((m.get("content") for m in self.messages if m["role"] == "user"), "")
        lines = [f" asked                 {asked}"[:WIDTH], *map(str, self.steps)]
        return "\n".join(lines + ([f"!stopped: {self.stopped}"] if self.stopped else []))


def read(completion: Any) -> Reply:
    """Read a whole completion of the ``openai`` client, whatever a server has put into it."""
    choice = completion.choices[0]
    return Reply(
        text=_said(choice.message),
        calls=tuple(_call(wish) for wish in _list(choice.message.tool_calls)),
        finish=_text(choice.finish_reason),
        **_usage(completion.usage),
    )


async def read_stream(stream: Any) -> Reply:
    """Put a streamed completion together.

    A call's id and name come first, then its arguments in pieces that belong together by their
    ``index``; text and calls may mix.
    """
    texts, parts, finish, usage, first_at = [], [], "", {}, None
    async for chunk in stream:
        usage = usage if getattr(chunk, "usage", None) is None else _usage(chunk.usage)
        for choice in _list(chunk.choices):
            delta = choice.delta
            finish = _text(choice.finish_reason) or finish
            texts.append(_said(delta))
            for wish in _list(getattr(delta, "tool_calls", None)):
                _piece_together(parts, getattr(wish, "index", None), _call(wish))
            if first_at is None and (texts[-1] or parts):
                first_at = clock()
    parts.sort(key=lambda part: part[0] if isinstance(part[0], int) else 0)
    calls = tuple(Call(id=i, name=n, arguments=a) for _, i, n, a in parts)
    return Reply(text="".join(texts), calls=calls, finish=finish, first_at=first_at, **usage)


def _piece_together(parts: list[list], index: Any, piece: Call) -> None:
    """Add a piece of a call to ``parts`` (``[index, id, name, arguments]`` each).

    Some servers number every call 0, or none of them: then another id begins another call, and a
    piece without id and name goes on with the last one. Some repeat id and name in every piece.
    """
    same = [part for part in parts if part[0] == index and index is not None][-1:]
    if index is None and parts and not (piece.id or piece.name):
        same = parts[-1:]
    if same and piece.id and same[0][1] and piece.id != same[0][1]:
        same = []
    if not same:
        parts.append([index, piece.id, piece.name, piece.arguments])
        return
    part = same[0]
    if not (piece.id and (piece.id, piece.name) == (part[1], part[2])):
        part[2] += piece.name
    part[1] = part[1] or piece.id
    part[3] += piece.arguments


def _said(message: Any) -> str:
    """The text of a message or of a piece of one; of a refusal, which OpenAI keeps apart, too."""
    content = getattr(message, "content", None)
    if isinstance(content, list):
        content = "".join(_text(part.get("text")) for part in content if isinstance(part, dict))
    return _text(content) or _text(getattr(message, "refusal", None))


def _call(wish: Any) -> Call:
    function = getattr(wish, "function", None)
    arguments = getattr(function, "arguments", None)
    if arguments is not None and not isinstance(arguments, str):
        arguments = json.dumps(arguments, default=str)  # some servers send the object itself
    name = _text(getattr(function, "name", None))
    return Call(id=_text(getattr(wish, "id", None)), name=name, arguments=arguments or "")


def _usage(usage: Any) -> dict[str, int]:
    details = getattr(usage, "prompt_tokens_details", None)
    return {
        "prompt_tokens": _count(getattr(usage, "prompt_tokens", 0)),
        "output_tokens": _count(getattr(usage, "completion_tokens", 0)),
        "cached_tokens": _count(getattr(details, "cached_tokens", 0)),
    }


def _text(value: Any) -> str:
    # What comes in goes out again as history: half a surrogate pair would break that request.
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _list(value: Any) -> list:
    return value if isinstance(value, list) else []
