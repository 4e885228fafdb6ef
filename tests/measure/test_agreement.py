"""The server's counters beside ours."""

from dataclasses import replace

import numpy as np
import pytest
from support.made_runs import closed_loop, queue

from helpers import measure


def test_agreement_with_the_servers_counters():
    """Ours and the server's numbers stand side by side, over the same time."""
    run = closed_loop()
    run.samples = [
        {"t_s": 0.0, "output_tokens_total": 100.0, "ttft_s_sum": 1.0, "ttft_count": 5.0},
        {"t_s": 4.0, "output_tokens_total": 540.0, "ttft_s_sum": 4.8, "ttft_count": 45.0},
    ]
    table = measure.agreement(run)
    assert table.loc["output tokens", "ratio"] == 1
    assert table.loc["TTFT mean, ms", "server"] == pytest.approx(95)
    assert measure.agreement(closed_loop()).empty


def test_an_answer_without_a_token_has_no_time_to_compare():
    """It counts as an answer, and spoils no mean."""
    run = queue(8, seconds=5)
    run.records[0] = replace(run.records[0], token_us=(), output_tokens=0)
    run.samples = [{"t_s": t, "output_tokens_total": 100.0 * t, "ttft_count": 10.0 * t,
                    "ttft_s_sum": 1.0 * t, "itl_s_sum": 1.0 * t, "itl_count": 9.0 * t}
                   for t in (0.0, 5.0)]  # fmt: skip
    assert np.isfinite(measure.agreement(run)["client"]).all()
