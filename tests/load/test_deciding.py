"""Which load a search measures next."""

import math

import pytest

from helpers import measure
from helpers.load import deciding


@pytest.mark.parametrize(
    ("values", "room", "then"),
    [
        ({32: 0.5, 128: 90.0, 49: 0.6, 61: 0.7}, math.inf, 88),  # the crossing crept up twice
        ({32: 0.5, 128: 90.0}, 96, 96),  # latency jumps where no more are taken at once
        ({32: 0.5, 128: 90.0, 96: 0.9}, 96, 103),  # that was tried: just beyond
    ],
    ids=["from one side", "the server's room", "beyond its room"],
)
def test_a_jump_of_latency_is_found_all_the_same(values, room, then):
    """Between a calm load and a queue the latencies lie on no line."""
    margins = {at: measure.Interval(value=one, low=one, high=one) for at, one in values.items()}
    assert deciding.next_load(margins, 1, 1024, 0.1, True, room) == then
