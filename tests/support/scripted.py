"""A model on strings and its answers, in few letters."""

import asyncio
import json

from helpers.tools.puppet import Puppet


class Scripted(Puppet):
    """A puppet that gives itself and its endpoint, and blocks no loop."""

    async def __aenter__(self):
        await asyncio.to_thread(self.__enter__)
        return self, self.endpoint

    async def __aexit__(self, *_):
        await asyncio.to_thread(self.__exit__)


def call(name, arguments="{}", id="call00001"):
    arguments = arguments if isinstance(arguments, str) else json.dumps(arguments)
    function = {"name": name, "arguments": arguments}
    return {"id": id, "type": "function", "function": function}


def wants(*calls):
    return {"content": None, "tool_calls": list(calls)}


def said(text="done"):
    return {"content": text}
