"""``python -m helpers rehearse | status | destroy | door``."""

import argparse
import asyncio
import contextlib
import signal
import sys
from datetime import datetime
from pathlib import Path

from helpers import load, measure, plots, rehearsal, rent, serve, settings
from helpers.errors import CourseError, Stopped
from helpers.progress import Progress
from helpers.rehearsal.faults import FAULTS
from helpers.settings import Settings

USERS = (1, 2, 4, 8, 16)


def rehearse(config: Settings) -> None:
    """The whole way, free and on this machine: rent, serve, measure, destroy.

    Ends with a table and two figures in ``runs/``. The rehearsal is stopped again, unless it was
    running before.
    """
    config = config.model_copy(update={"provider": "rehearsal"})
    was_running = rehearsal.running(config)
    try:
        provider = rent.connect(config)
        print(rent.preflight(config))
        with (
            rent.guard.rented(provider, serve.ServingSpec(), "rehearse", config) as instance,
            rent.ssh.tunnel(instance, config) as tunnel,
        ):
            print(f"a tunnel, the same as: {tunnel.command}")
            with Progress() as say:
                endpoint = tunnel.endpoint(
                    poll_s=provider.poll_s, progress=say, log=lambda: provider.logs(instance.id, 20)
                )
            folder = config.runs_dir / f"rehearsal-{datetime.now():%Y%m%d-%H%M%S}"
            workload = load.Synthetic(input_tokens=16, output_tokens=64)
            sweep = load.sweep(
                endpoint, workload, users=USERS, answer_times=1, budget_s=90, folder=folder
            )
            try:
                runs = asyncio.run(sweep)
            except Stopped:
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever presses again: we clean up
                raise
        print(f"destroyed; {rent.preflight(config)}")
        print(f"{endpoint.title}:\n{measure.table(runs).round(1).T.to_string()}")
        if any(run.disturbed for run in runs):
            most = max(run.header["others_cores"] for run in runs)
            print(f"too busy to measure: other programs used {most:.1f} cores of this machine")
        for name, figure in {"throughput": plots.throughput, "latency": plots.latency}.items():
            figure(runs).savefig(folder / f"{name}.png")
            print(f"figure: {folder / name}.png")
    finally:
        if not was_running:
            rehearsal.stop(config)


def start(config: Settings) -> None:
    """Only start the rehearsal."""
    print(f"the rehearsal answers at {rehearsal.ensure(config).url}")


def stop(config: Settings) -> None:
    """Stop the rehearsal and its machines."""
    print("stopped" if rehearsal.stop(config) else "no rehearsal is running")


def reset(config: Settings) -> None:
    """Stop it, and refill its credit."""
    rehearsal.reset(config)
    print("the rehearsal begins anew at its next use")


def env(config: Settings) -> None:
    """Start it, and print what points the program `vastai` at it."""
    with contextlib.redirect_stdout(sys.stderr):  # what it says meanwhile is not for the shell
        server = rehearsal.ensure(config)
    print(f"export VAST_URL={server.url} VAST_API_KEY={server.token}")


def status(config: Settings) -> None:
    """Show everything of the course that is rented, and what it costs."""
    found, unknown = rent.accounts(config)
    for provider, rented in found.items():
        table = rent.guard.status(rent.ours(rented))
        if len(table):
            print(table.to_string(index=False))
            print(f"{provider.name}: ${table['usd_per_hour'].sum():.3f}/h")
    print(rent.preflight(config))
    if unknown:
        raise CourseError("; ".join(unknown), "mend that, or look in the provider's console")


def destroy(config: Settings) -> None:
    """Destroy everything of the course that is rented, and look that it is gone."""
    rent.guard.end(config)


def door(config: Settings, folder: str = "") -> None:
    """Show who uses a door for customers, since when, and at what cost."""
    doors = sorted(config.runs_dir.glob("*/door.json"), key=lambda path: path.stat().st_mtime)
    if not folder and not doors:
        what = f"there is no door in {config.runs_dir}"
        raise CourseError(what, "python -m helpers door status FOLDER")
    place = Path(folder) if folder else doors[-1].parent
    if not (place / "door.json").exists():
        raise CourseError(f"{place} is no door's folder", "it is the folder of its nginx.conf")
    print(f"{place}\n{serve.bill.status(place).T.to_string()}")


def main(argv: list[str] | None = None) -> int:
    """Run one command; an expected failure is two lines and status 1."""
    parser = argparse.ArgumentParser(prog="python -m helpers", description=__doc__)
    commands = parser.add_subparsers(required=True)
    for run in (rehearse, status, destroy):
        summary = str(run.__doc__).partition("\n")[0]
        commands.add_parser(run.__name__, help=summary).set_defaults(run=run)
    only = commands.choices["rehearse"].add_mutually_exclusive_group()
    for run in (start, stop, reset, env):
        only.add_argument(
            f"--{run.__name__}", dest="run", action="store_const", const=run, default=rehearse,
            help=run.__doc__,
        )  # fmt: skip
    only.add_argument("--fault", choices=FAULTS, metavar="NAME", help="bad luck: %(choices)s")
    doors = commands.add_parser("door", help=str(door.__doc__))
    doors.add_argument("what", choices=["status"])
    doors.add_argument("folder", nargs="?", default="", help="by default the newest in RUNS_DIR")
    doors.set_defaults(run=door)
    options = parser.parse_args(argv)
    try:
        config = settings.read()
        if fault := vars(options).get("fault"):
            rehearsal.provoke(config, fault)
            print(f"armed: {FAULTS[fault]}")
        elif options.run is door:
            door(config, options.folder)
        else:
            options.run(config)
    except (KeyboardInterrupt, Stopped) as error:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        left = "`python -m helpers status` shows what is rented"
        if options.run is rehearse and not rehearsal.holds_rentals(config):
            left = f"nothing is left rented{' or running' * (not rehearsal.running(config))}"
        print(f"{str(error) or 'interrupted'}\n{left}", file=sys.stderr)
        return 130
    except CourseError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
