"""What an answer says: the events of its stream, and the assistant's message put together.

The one reader of servers' answers, for the load generator and for ``helpers.tools`` alike.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec

_FIELDS = (b"data", b"event", b"id", b"retry", b"error", b"")  # "": a comment, as in `: ping`


class Delta(msgspec.Struct, gc=False):
    """A piece of a message as a server sent it, of whatever types; or a whole message."""

    content: Any = None
    reasoning: Any = None
    reasoning_content: Any = None
    refusal: Any = None
    tool_calls: Any = None


@dataclass(slots=True)
class Call:
    """A tool call as the model wrote it; ``arguments`` is text, which should be JSON."""

    id: str = ""
    name: str = ""
    arguments: str = ""
    index: int | None = field(default=None, repr=False, compare=False)

    def parsed(self) -> dict | None:
        """Return the arguments, ``None`` if they are no JSON object."""
        with suppress(ValueError, RecursionError):
            values = json.loads(self.arguments or "{}")
            return values if isinstance(values, dict) else None
        return None

    def __str__(self) -> str:
        return f"{self.name}({self.arguments})"

    def as_dict(self) -> dict:
        """Return it as it stands in the chat's history."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


class Message:
    """What the assistant said, put together from the pieces (deltas) of a stream.

    Args:
        deltas: in the order in which they came.

    >>> Message([Delta(content="Hel"), Delta(content="lo")]).text
    'Hello'
    """

    def __init__(self, deltas: Iterable[Delta]) -> None:
        self.text = ""
        self.calls: list[Call] = []
        for one in deltas:
            self.text += _content(one.content) or _text(one.refusal)  # OpenAI keeps it apart
            for wish in _list(one.tool_calls):
                self._add(_call(wish))
        self.calls.sort(key=lambda call: call.index or 0)

    def as_dict(self) -> dict:
        """Return the message as it stands in the chat's history."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.calls:
            message["tool_calls"] = [call.as_dict() for call in self.calls]
        return message

    def _add(self, piece: Call) -> None:
        """Go on with the call that a piece belongs to, or begin another one.

        Pieces of one call share their ``index``. Some servers number every call 0, or none: then a
        new call begins with its name. But some repeat the name or the id in each piece, or give
        each piece a new id: while the arguments are incomplete, the same name goes on.
        """
        same = [c for c in self.calls if piece.index is None or c.index in (None, piece.index)]
        if not same:
            self.calls.append(piece)
            return
        call, repeated = same[-1], piece.name == same[-1].name
        begins: object = piece.id and call.id and piece.id != call.id
        if repeated and call.arguments:
            begins = call.parsed() is not None and (begins or piece.arguments)
        elif call.arguments:
            begins = True
        if begins and piece.name and call.name:
            self.calls.append(piece)
            return
        call.id = call.id or piece.id
        call.name += "" if repeated else piece.name
        call.arguments += piece.arguments


def numbered(message: dict) -> Delta:
    """Return the message of an answer that is not streamed as one piece, its calls kept apart."""
    wishes = [_dict(wish) for wish in _list(message.get("tool_calls"))]
    calls = [{**wish, "index": number} for number, wish in enumerate(wishes)]
    return msgspec.convert({**message, "tool_calls": calls}, Delta)


def sse_events(pieces: Iterable[bytes]) -> Iterator[tuple[int, dict | None]]:
    r"""Yield the server-sent events of a stream as JSON objects, ``None`` for its ``[DONE]``.

    Args:
        pieces: the body as it came, cut anywhere.

    Yields:
        The index of the piece that completed the event, and the event.

    Raises:
        ValueError: something is no event, in words that say what.

    >>> list(sse_events([b'data: {"a"', b":1}\n\ndata: [DONE]\n\n"]))
    [(1, {'a': 1}), (1, None)]
    """
    rest, index = b"", 0
    for index, piece in enumerate(pieces):
        *blocks, rest = (rest + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        for block in blocks:
            for event in _events(block):
                yield index, event
    for event in _events(rest):  # a stream may end without its empty line
        yield index, event


def _events(block: bytes) -> list[dict | None]:
    """Return the event of one block of lines: one, unless a server forgets the empty lines."""
    values = []
    for line in block.splitlines():
        name, _, value = line.partition(b":")
        if name not in _FIELDS:
            raise ValueError(f"not a stream of events: {_shown(line)}")
        if name in (b"data", b"error"):
            values.append((name, value.strip()))
    if len(values) > 1:
        with suppress(ValueError):
            return [_json(b"\n".join(value for _, value in values))]
    return [None if v == b"[DONE]" else _json(v, wrapped=name == b"error") for name, v in values]


def _json(value: bytes, *, wrapped: bool = False) -> dict:
    try:
        event = json.loads(value.decode())  # takes half a surrogate pair and NaN, unlike msgspec
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict):
        raise ValueError(f"not an event: {_shown(value)}")
    return {"error": event} if wrapped else event


def _shown(value: bytes) -> str:
    return repr(value[:80].decode("utf-8", "replace"))


def _call(wish: object) -> Call:
    wish = _dict(wish)
    function = _dict(wish.get("function"))
    arguments = function.get("arguments")
    if arguments is not None and not isinstance(arguments, str):
        arguments = json.dumps(arguments)  # some servers send the object itself
    index = wish.get("index")
    return Call(
        id=_text(wish.get("id")),
        name=_text(function.get("name")),
        arguments=_text(arguments),
        index=index if isinstance(index, int) else None,
    )


def _content(content: object) -> str:
    """Return the text of ``content``, also where it is a list of parts."""
    if isinstance(content, list):
        return "".join(_text(part.get("text")) for part in content if isinstance(part, dict))
    return _text(content)


def _text(value: object) -> str:
    # What comes in goes out again as history: half a surrogate pair would break that request.
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _dict(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list:
    return value if isinstance(value, list) else []
