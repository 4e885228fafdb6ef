"""Runs made by hand, whose every number is known."""

import random
from dataclasses import replace

from helpers.records import Record, Run


def closed_loop(users=2, each=20, ttft_s=0.1, gap_s=0.01, tokens=11, failed=0) -> Run:
    """A perfectly even closed loop: every request takes ttft_s + (tokens - 1) * gap_s."""
    length = ttft_s + (tokens - 1) * gap_s
    times = tuple(round((ttft_s + k * gap_s) * 1e6) for k in range(tokens))
    records = [
        Record(
            index=user + users * number,
            user=user,
            sent_s=number * length,
            end_s=(number + 1) * length,
            token_us=times,
            prompt_tokens=5,
            output_tokens=tokens,
            status=200,
            cause="timeout" if number < failed else "",
        )
        for number in range(each)
        for user in range(users)
    ]
    header = {
        "label": f"{users} users",
        "endpoint": {"title": "m, e on h"},
        "arrivals": {"kind": "ClosedLoop", "users": users},
    }
    return Run(header, records, ends=[{"ended": "complete", "lag_p99_ms": 0.1, "cpu_s": 0.1,
                                       "wall_s": 1.0}])  # fmt: skip


def queue(rate, seconds=20.0, service_s=0.025, seed=0) -> Run:
    """Poisson arrivals at a server that answers one request at a time, in ``service_s`` each."""
    chance, now, free, records = random.Random(seed), 0.0, 0.0, []
    while (now := now + chance.expovariate(rate)) < seconds:
        free = max(free, now) + service_s
        first = round((free - now) * 1e6)
        records.append(Record(index=len(records), scheduled_s=now, sent_s=now, end_s=free,
                              token_us=(first,), output_tokens=1, status=200))  # fmt: skip
    even = closed_loop()
    arrivals = {"kind": "Poisson", "rate_per_s": rate}
    return Run(even.header | {"label": f"{rate}/s", "arrivals": arrivals}, records, ends=even.ends)


def broken(run: Run) -> Run:
    """The same run, with every answer lost."""
    lost = [replace(record, cause="http 503", token_us=()) for record in run.records]
    return Run(run.header, lost, ends=run.ends)
