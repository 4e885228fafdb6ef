"""What the bytes of an answer meant: tokens and their times, usage, or the cause of a failure."""

import json
import re
from dataclasses import dataclass

from helpers.wire import Exchange, ProtocolError

# A delta that carries text. An unescaped `"content":"` cannot occur inside a JSON string, so
# counting it in the raw bytes is exact, and several times cheaper than reading the JSON.
_TEXT = re.compile(rb'"(?:content|reasoning_content|reasoning|text|arguments)": ?"(?!")')
_STRANGE = re.compile(  # a line that is no server-sent event field, or data that is no JSON object
    rb"(?m)^(?!data: ?(?:\{.*\}|\[DONE\])\r?$|:|event:|id:|retry:|\r?$).*"
)
_FINISH = re.compile(rb'"finish_reason": ?"(\w+)"')
_USAGE = re.compile(rb'(?m)^data: ?(\{.*"usage": ?\{.*\})\r?$')
_FAILED = re.compile(rb'(?m)^(?:data|error): ?(\{(?:"error"|"object": ?"error"|"code").*\})\r?$')


@dataclass(slots=True)
class Reply:
    """One answer, read. Times are ``time.perf_counter`` seconds; see ``helpers.records``."""

    token_times: list[float]
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    finish: str = ""
    cause: str = ""
    error: str = ""
    body: bytes = b""

    def message(self) -> dict:
        """Return the assistant's message put together again from its pieces."""
        text, calls = [], {}
        for line in self.body.splitlines():
            if not line.startswith(b"data:") or line.endswith(b"[DONE]"):
                continue
            for choice in json.loads(line[5:]).get("choices", ()):
                delta = choice.get("delta", {})
                text.append(delta.get("content") or "")
                for part in delta.get("tool_calls") or ():
                    call = calls.setdefault(part["index"], {"type": "function", "function": {}})
                    call["id"] = part.get("id") or call.get("id")
                    for key, value in part.get("function", {}).items():
                        call["function"][key] = call["function"].get(key, "") + (value or "")
        message = {"role": "assistant", "content": "".join(text)}
        return message | ({"tool_calls": list(calls.values())} if calls else {})


def read(exchange: Exchange) -> Reply:
    """Read a finished exchange.

    A token's time is that of the read which completed its line. A streamed piece of text counts
    as one token time, as the server sends one token a piece unless it falls behind; how many
    tokens there were is what the server's ``usage`` says.
    """
    reply = Reply([], cause=exchange.cause, error=exchange.error)
    times, lines, rest = reply.token_times, [], b""
    try:
        for time, payload in exchange.pieces():
            data = rest + payload if rest else payload
            cut = data.rfind(b"\n") + 1
            lines.append(data[:cut])
            rest = data[cut:]
            count = len(_TEXT.findall(lines[-1]))
            if count == 1:
                times.append(time)
            elif count:
                times += [time] * count
    except ProtocolError as error:
        reply.cause, reply.error = reply.cause or "malformed", reply.error or str(error)
    reply.body = body = b"".join([*lines, rest])
    _read_usage(reply, body)
    if finish := _FINISH.findall(body):
        reply.finish = finish[-1].decode()
    if not reply.cause:
        _judge(reply, exchange, body)
    return reply


def _read_usage(reply: Reply, body: bytes) -> None:
    reply.output_tokens = len(reply.token_times)  # what is known without usage, a lower bound
    for line in reversed(_USAGE.findall(body)):
        try:
            usage = json.loads(line)["usage"]
        except ValueError:
            continue
        reply.prompt_tokens = usage.get("prompt_tokens") or 0
        reply.output_tokens = usage.get("completion_tokens") or 0
        details = usage.get("prompt_tokens_details") or {}
        reply.cached_tokens = details.get("cached_tokens") or 0
        return


def _judge(reply: Reply, exchange: Exchange, body: bytes) -> None:
    """Find the cause of failure in an answer that arrived whole."""
    if exchange.status != 200:
        reply.cause = f"http {exchange.status}"
        reply.error = body[:300].decode("utf-8", "replace").strip() or reply.cause
    elif failed := _FAILED.search(body):
        reply.cause, reply.error = "server error", failed[1][:300].decode("utf-8", "replace")
    elif strange := _STRANGE.search(body):
        reply.cause = "malformed"
        reply.error = f"not a stream of events: {strange[0][:80].decode('utf-8', 'replace')!r}"
    elif not reply.finish and b"[DONE]" not in body:
        reply.cause, reply.error = "malformed", "the stream ended without a finish reason"
