"""``vllm-router`` in front of the rehearsal's model server."""

import pytest

from helpers import load, router, serving
from helpers.errors import CourseError

pytest.importorskip("vllm_router", reason="vllm-router has ready-made wheels for Linux only")


@pytest.mark.parametrize("policy", router.POLICIES)
def test_the_routers_own_parser_takes_our_command(policy):
    """A renamed option would show only when the router does not start."""
    from vllm_router.launch_router import parse_router_args

    words = router.command(["http://127.0.0.1:1", "http://127.0.0.1:2"], policy, 3, 4)
    options = parse_router_args(words[1:])
    assert (options.policy, options.port, options.prometheus_port) == (policy, 3, 4)
    assert options.worker_urls == ["http://127.0.0.1:1", "http://127.0.0.1:2"]


async def test_requests_go_through_it_and_workers_leave_and_join(endpoint, tmp_path):
    """Records through the router are whole."""
    work, users = load.Synthetic(input_tokens=8, output_tokens=4), load.ClosedLoop(users=2)
    with router.start([endpoint], "round_robin") as front:
        assert front.workers == [endpoint.origin]
        run = await load.run(
            front.endpoint, work, users, requests=4, path=tmp_path / "run.jsonl", progress=False
        )
        assert [record.output_tokens for record in run.ok] == [4] * 4
        front.remove(endpoint)
        assert front.workers == []
        front.add(endpoint)
        assert front.workers == [endpoint.origin]
    assert front.process.poll() is not None


def test_what_cannot_be_routed_is_told(endpoint):
    """A typing error must not start a process."""
    with pytest.raises(CourseError, match="no policy 'best'"):
        router.start([endpoint], "best")
    with pytest.raises(CourseError, match="needs servers"):
        router.start([])


def test_the_servers_metrics_have_the_same_few_names(endpoint):
    """`serving.metrics` is what the text promises for both engines."""
    before = serving.metrics(endpoint)
    endpoint.client().completions.create(model=endpoint.model, prompt="Hi", max_tokens=3)
    assert serving.metrics(endpoint).output_tokens_total >= before.output_tokens_total + 3
    assert before.running == 0
