"""A model on strings and its answers, in few letters."""

import asyncio
import itertools
import json
import time

from helpers.load.client.answer import Message, numbered
from helpers.tools.puppet import Puppet, event


class Scripted(Puppet):
    """A puppet that gives itself and its endpoint, and streams letter by letter.

    An answer may also be ``(status, text)``, or a function of the request's body.
    """

    async def __aenter__(self):
        self.__enter__()
        return self, self.endpoint

    async def __aexit__(self, *_):
        await asyncio.to_thread(self.__exit__)

    def written(self, answer, body):
        answer = answer(body) if callable(answer) else answer
        if isinstance(answer, tuple) or not body.get("stream"):
            return answer if isinstance(answer, tuple) else super().written(answer, body)
        finish = "tool_calls" if answer.get("tool_calls") else "stop"
        events = [event(delta=piece) for piece in self.pieces(answer)]
        events += [event(delta={}, finish_reason=finish), "[DONE]"]
        texts = [one if isinstance(one, str) else json.dumps(one) for one in events]
        return 200, "".join(f"data: {text}\n\n" for text in texts)

    def pieces(self, message):
        """Text by letters; a call's name first, then the arguments of all calls in turn."""
        yield {"role": "assistant", "content": ""}
        for letter in message.get("content") or "":
            yield {"content": letter}
        wishes = message.get("tool_calls") or []
        for index, wish in enumerate(wishes):
            head = {**wish, "index": index, "function": {**wish["function"], "arguments": ""}}
            yield {"tool_calls": [head]}
        texts = [wish["function"]["arguments"] for wish in wishes]
        for letters in itertools.zip_longest(*texts, fillvalue=""):
            for index, letter in enumerate(letters):
                if letter:
                    yield {"tool_calls": [{"index": index, "function": {"arguments": letter}}]}


def call(name, arguments="{}", id="call00001"):
    arguments = arguments if isinstance(arguments, str) else json.dumps(arguments)
    function = {"name": name, "arguments": arguments}
    return {"id": id, "type": "function", "function": function}


def wants(*calls):
    return {"content": None, "tool_calls": list(calls)}


def said(text="done"):
    return {"content": text}


def counting(most):
    """An answer that takes a while, and notes in a list how many are given at the same time."""
    now = []

    def answer(_body):
        now.append(1)
        most.append(len(now))
        time.sleep(0.05)
        now.pop()
        return said()

    return answer


def message(*calls, text=""):
    """An answer as its reader gives it."""
    return Message([numbered({"content": text, "tool_calls": list(calls)})])
