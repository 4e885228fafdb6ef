"""Runs made by hand, whose every number is known."""

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
