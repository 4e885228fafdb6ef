"""One and two replicas behind vllm-router, each on a core of its own: tokens per second.

``python tests/benchmarks/replicas.py [--users 8] [--rounds 2]`` on an otherwise idle machine of at
least two cores. Both are measured in the same run; their ratio is printed. It should be 1.6 or
more: what is missing to 2 goes to router, tunnels and load generator, which share the cores.
"""

import argparse
import asyncio
import tempfile
from contextlib import ExitStack
from pathlib import Path

from helpers import load, measure, rent, settings
from helpers.rent import guard, ssh
from helpers.rent.market import OfferFilter
from helpers.serve import ServingSpec, router


def main() -> None:
    """Rent two machines of the rehearsal, measure, give them back."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=8, help="of one replica")
    parser.add_argument("--requests", type=int, default=4, help="of one user")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    config = settings.read().model_copy(update={"provider": "rehearsal"})
    provider = rent.connect(config)
    with ExitStack() as rented:
        endpoints = []
        for number in range(2):
            wanted = OfferFilter(gpu=("RTX 4090",))
            machine = rented.enter_context(
                guard.rented(provider, ServingSpec(), f"bench-{number}", config, wanted=wanted)
            )
            tunnel = rented.enter_context(ssh.tunnel(machine, config))
            endpoints.append(tunnel.endpoint())
        for number in range(options.rounds):
            asyncio.run(_round(endpoints, options, number))


async def _round(endpoints, options, number: int) -> None:
    rates = []
    for count in (1, 2):
        work = load.Synthetic(input_tokens=16, output_tokens=64, seed=10 * number + count)
        users = count * options.users
        with router.start(endpoints[:count], "round_robin") as front:
            run = await load.run(
                front.endpoint, work, load.ClosedLoop(users=users),
                requests=options.requests * users, progress=False,
                path=Path(tempfile.mkdtemp()) / "run.jsonl",
            )  # fmt: skip
        assert len(run.ok) == len(run.records), run
        rates.append(measure.interval(run, "output_tokens_per_s"))
    one, two = rates
    print(
        f"1 replica {one.value:.0f} ({one.low:.0f} to {one.high:.0f}), "
        f"2 replicas {two.value:.0f} ({two.low:.0f} to {two.high:.0f}) output tokens/s: "
        f"{two.value / one.value:.2f} times"
    )


if __name__ == "__main__":
    main()
