"""``python -m helpers rehearse | status | destroy``."""

import argparse
import asyncio
import sys
from datetime import datetime
from pathlib import Path

from helpers import load, measure, plots, rehearsal, rent, serve, settings
from helpers.endpoint import Endpoint
from helpers.errors import CourseError
from helpers.progress import Progress
from helpers.rehearsal.faults import FAULTS
from helpers.settings import Settings

USERS = (1, 2, 4, 8, 16)
OFFER = ["gpu", "vram_gb", "usd_per_hour", "reliability", "location"]
MEASURED = [
    "users", "requests", "failed", "output_tokens_per_s", "requests_per_s",
    "ttft_p50_ms", "ttft_p95_ms", "itl_p50_ms", "itl_p95_ms",
]  # fmt: skip


def rehearse(config: Settings) -> None:
    """The whole way, free and on this machine: rent, serve, measure, destroy.

    Ends with a table and two figures in ``runs/``. The rehearsal is stopped again, unless it was
    running before.
    """
    config = config.model_copy(update={"provider": "rehearsal"})
    was_running = rehearsal.running(config)
    try:
        _rehearse(config)
    finally:
        if not was_running:
            rehearsal.stop(config)


def _rehearse(config: Settings) -> None:
    provider = rent.connect(config)
    print(f"1. account: ${provider.balance_usd():.2f} of pretend credit")
    offers = provider.offers(rent.OfferFilter())
    print(f"2. market:  {len(offers)} offers match; the cheapest three:")
    print(rent.frame(offers[:3])[OFFER].to_string(index=False))
    print("3. rent, wait, log in")
    with (
        rent.guard.rented(provider, serve.ServingSpec(), "rehearse", config) as instance,
        rent.ssh.tunnel(instance, config) as tunnel,
    ):
        print(f"4. tunnel, the same as: {tunnel.command}")
        with Progress() as say:
            endpoint = tunnel.endpoint(
                poll_s=provider.poll_s, progress=say, log=lambda: provider.logs(instance.id, 20)
            )
            say(f"ready: {endpoint.title}")
        _ask(endpoint)
        _measure(endpoint, config.runs_dir / f"rehearsal-{datetime.now():%Y%m%d-%H%M%S}")
    left = len(provider.instances())
    print(f"8. destroyed; still rented: {left}, credit ${provider.balance_usd():.2f}")


def _ask(endpoint: Endpoint) -> None:
    stream = endpoint.client().chat.completions.create(
        model=endpoint.model,
        messages=[{"role": "user", "content": "In one sentence: what is a GPU?"}],
        max_tokens=60,
        temperature=0,
        stream=True,
    )
    print("5. first answer, streamed: ", end="")
    for chunk in stream:
        print(chunk.choices[0].delta.content or "" if chunk.choices else "", end="", flush=True)
    print()


def _measure(endpoint: Endpoint, folder: Path) -> None:
    print(f"6. load: {', '.join(map(str, USERS))} simulated users, one after the other")
    workload = load.Synthetic(input_tokens=16, output_tokens=64)
    runs = asyncio.run(load.sweep(endpoint, workload, users=USERS, folder=folder))
    print(f"\n{endpoint.title}")
    print(measure.table(runs)[MEASURED].round(1).to_string(index=False))
    for name, figure in (("throughput", plots.throughput(runs)), ("latency", plots.latency(runs))):
        figure.savefig(folder / f"{name}.png")
        print(f"7. figure:  {folder / name}.png")


def status(config: Settings) -> None:
    """Everything of the course that is rented, on every configured provider."""
    for provider in rent.configured(config):
        table = rent.guard.status(provider)
        if len(table):
            print(table.to_string(index=False))
            print(f"{provider.name}: ${table['usd_per_hour'].sum():.3f}/h")
    print(rent.preflight(config))


def destroy(config: Settings) -> None:
    """Destroy everything of the course that is rented, and look that it is gone."""
    for provider in rent.configured(config):
        for instance in provider.instances():
            rent.guard.destroy(provider, instance.id)
            print(f"{provider.name}: instance {instance.id} ({instance.label}) is gone")
    print(rent.preflight(config))


def _switch(config: Settings, options: argparse.Namespace) -> None:
    if options.stop:
        print("stopped" if rehearsal.stop(config) else "no rehearsal is running")
    elif options.reset:
        rehearsal.reset(config)
        print("the rehearsal begins anew at its next use")
    elif options.start:
        print(f"the rehearsal answers at {rehearsal.ensure(config).url}")
    elif options.fault:
        rehearsal.provoke(config, options.fault)
        print(f"armed: {FAULTS[options.fault]}")
    elif options.env:
        server = rehearsal.ensure(config)
        print(f"export VAST_URL={server.url} VAST_API_KEY={server.token}")
    else:
        rehearse(config)


def main(argv: list[str] | None = None) -> int:
    """Run one command; an expected failure is two lines and status 1."""
    parser = argparse.ArgumentParser(prog="python -m helpers", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    course = commands.add_parser("rehearse", help="the whole course's way, free, on this machine")
    only = course.add_mutually_exclusive_group()
    for name, meaning in {
        "start": "only start the rehearsal",
        "stop": "stop the rehearsal and its machines",
        "reset": "stop it, and refill its credit",
        "env": "start it, and print what points the program `vastai` at it",
    }.items():
        only.add_argument(f"--{name}", action="store_true", help=meaning)
    known = ", ".join(FAULTS)
    only.add_argument("--fault", choices=FAULTS, metavar="NAME", help=f"order bad luck: {known}")
    commands.add_parser("status", help="what is rented, and what it costs")
    commands.add_parser("destroy", help="destroy everything the course has rented")
    options = parser.parse_args(argv)
    try:
        config = settings.read()
        if options.command == "rehearse":
            _switch(config, options)
        else:
            {"status": status, "destroy": destroy}[options.command](config)
    except CourseError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; `python -m helpers status` shows what is rented", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
