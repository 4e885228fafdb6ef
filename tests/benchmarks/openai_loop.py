"""What one writes first: N workers, each awaiting AsyncOpenAI streams. For ``compare.py``."""

import asyncio
import json
import sys
from pathlib import Path
from time import perf_counter as clock

import openai


async def main(url: str, users: int, requests: int, tokens: int, path: str) -> None:
    """Make the requests and write TTFTs and gaps in milliseconds."""
    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
    left, ttft, gaps = iter(range(requests)), [], []

    async def user() -> None:
        for _ in left:
            last = begin = clock()
            stream = await client.chat.completions.create(
                model="mock",
                messages=[{"role": "user", "content": "word " * 32}],
                max_tokens=tokens,
                stream=True,
                stream_options={"include_usage": True},
            )
            first = True
            async for chunk in stream:
                if chunk.choices and chunk.choices[0].delta.content:
                    now = clock()
                    (ttft if first else gaps).append((now - (begin if first else last)) * 1e3)
                    first, last = False, now

    await asyncio.gather(*(user() for _ in range(users)))
    Path(path).write_text(json.dumps({"ttft": ttft, "gaps": gaps}))


if __name__ == "__main__":
    url, users, requests, tokens, path = sys.argv[1:]
    asyncio.run(main(url, int(users), int(requests), int(tokens), path))
