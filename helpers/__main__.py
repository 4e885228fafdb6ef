"""``python -m helpers rehearse | status | destroy``."""

import argparse
import asyncio
import sys
from datetime import datetime

from helpers import load, measure, plots, rehearsal
from helpers import rent as providers
from helpers import settings as settings_module
from helpers.errors import CourseError
from helpers.progress import Progress
from helpers.rehearsal.faults import FAULTS
from helpers.rent import guard, ssh
from helpers.serve import ServingSpec
from helpers.settings import Settings

USERS = (1, 2, 4, 8, 16)


def rehearse(settings: Settings) -> None:
    """The whole way, free and on this machine: rent, serve, measure, destroy.

    Ends with a table and two figures in ``runs/``. The rehearsal is stopped again, unless it was
    running before.
    """
    settings = settings.model_copy(update={"provider": "rehearsal"})
    was_running = rehearsal.running(settings) is not None
    provider = providers.connect(settings)
    try:
        print(f"1. account: ${provider.balance_usd():.2f} of pretend credit")
        offers = provider.offers(providers.OfferFilter())
        print(f"2. market:  {len(offers)} offers match; the cheapest three:")
        columns = ["gpu", "vram_gb", "usd_per_hour", "reliability", "location"]
        print(providers.frame(offers[:3])[columns].to_string(index=False))
        print("3. rent, wait, log in")
        spec = ServingSpec()
        with (
            guard.rented(provider, spec, "rehearse", settings) as instance,
            ssh.tunnel(instance, settings) as tunnel,
        ):
            print(f"4. tunnel, the same as: {tunnel.command}")
            with Progress() as say:
                endpoint = tunnel.endpoint(
                    poll_s=provider.poll_s,
                    progress=say,
                    log=lambda: provider.logs(instance.id, 20),
                )
                say(f"ready: {endpoint.title}")
            _first_answer(endpoint)
            folder = settings.runs_dir / datetime.now().strftime("rehearsal-%Y%m%d-%H%M%S")
            _measure(endpoint, folder)
        left = guard.status(provider)
        print(f"8. destroyed; still rented: {len(left)}, credit ${provider.balance_usd():.2f}")
    finally:
        if not was_running:
            rehearsal.stop(settings)


def _first_answer(endpoint) -> None:
    question = [{"role": "user", "content": "In one sentence: what is a GPU?"}]
    stream = endpoint.client().chat.completions.create(
        model=endpoint.model, messages=question, max_tokens=60, temperature=0, stream=True
    )
    print("5. first answer, streamed: ", end="")
    for chunk in stream:
        print(chunk.choices[0].delta.content or "" if chunk.choices else "", end="", flush=True)
    print()


def _measure(endpoint, folder) -> None:
    print(f"6. load: {', '.join(map(str, USERS))} simulated users, one after the other")
    workload = load.Synthetic(input_tokens=16, output_tokens=64)
    runs = asyncio.run(load.sweep(endpoint, workload, users=USERS, folder=folder))
    columns = ["users", "requests", "failed", "output_tokens_per_s", "requests_per_s"]
    columns += ["ttft_p50_ms", "ttft_p95_ms", "itl_p50_ms", "itl_p95_ms"]
    print(f"\n{endpoint.title}")
    print(measure.table(runs)[columns].round(1).to_string(index=False))
    for name, figure in (("throughput", plots.throughput(runs)), ("latency", plots.latency(runs))):
        figure.savefig(folder / f"{name}.png")
        print(f"7. figure:  {folder / name}.png")


def status(settings: Settings) -> None:
    """Everything of the course that is rented, on every configured provider."""
    found = False
    for provider in providers.configured(settings):
        table = guard.status(provider)
        if len(table):
            found = True
            print(table.to_string(index=False))
            total = table["usd_per_hour"].sum()
            print(f"{provider.name}: ${total:.3f}/h, balance ${provider.balance_usd():.2f}")
    if not found:
        print("nothing is rented")


def destroy(settings: Settings) -> None:
    """Destroy everything of the course that is rented, and look that it is gone."""
    count = 0
    for provider in providers.configured(settings):
        for instance in provider.instances():
            guard.destroy(provider, instance.id)
            print(f"{provider.name}: instance {instance.id} ({instance.label}) is gone")
            count += 1
    print(f"destroyed {count}, nothing is rented" if count else "nothing is rented")


def main(argv: list[str] | None = None) -> int:
    """Run one command; an expected failure is two lines and status 1."""
    parser = argparse.ArgumentParser(prog="python -m helpers", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    course = commands.add_parser("rehearse", help="the whole course's way, free, on this machine")
    only = course.add_mutually_exclusive_group()
    only.add_argument("--start", action="store_true", help="only start the rehearsal")
    only.add_argument("--stop", action="store_true", help="stop the rehearsal and its machines")
    only.add_argument("--reset", action="store_true", help="stop it, and refill its credit")
    only.add_argument(
        "--env", action="store_true", help="start it and print what points `vastai` to it"
    )
    only.add_argument(
        "--fault", choices=FAULTS, metavar="NAME", help="order bad luck: " + ", ".join(FAULTS)
    )
    commands.add_parser("status", help="what is rented, and what it costs")
    commands.add_parser("destroy", help="destroy everything the course has rented")
    options = parser.parse_args(argv)
    try:
        _run(options, settings_module.load())
    except CourseError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; `python -m helpers status` shows what is rented", file=sys.stderr)
        return 130
    return 0


def _run(options: argparse.Namespace, settings: Settings) -> None:
    if options.command == "status":
        status(settings)
    elif options.command == "destroy":
        destroy(settings)
    elif options.stop:
        print("stopped" if rehearsal.stop(settings) else "no rehearsal is running")
    elif options.reset:
        rehearsal.reset(settings)
        print("the rehearsal begins anew at its next use")
    elif options.start:
        print(f"the rehearsal answers at {rehearsal.ensure(settings).url}")
    elif options.fault:
        rehearsal.provoke(settings, options.fault)
        print(f"armed: {FAULTS[options.fault]}")
    elif options.env:
        server = rehearsal.ensure(settings)
        print(f"export VAST_URL={server.url} VAST_API_KEY={server.token}")
    else:
        rehearse(settings)


if __name__ == "__main__":
    sys.exit(main())
