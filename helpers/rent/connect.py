"""From the settings to a provider, and from a rental to a machine that runs."""

import contextlib
import time
from collections.abc import Callable, Iterable

import pandas as pd

from helpers import rehearsal
from helpers.errors import CourseError
from helpers.rent.calls import RUNPOD, VAST
from helpers.rent.market import Instance, Offer, Provider
from helpers.rent.runpod import RunPod
from helpers.rent.vast import Vast
from helpers.settings import Settings

Say = Callable[[str], None]
"""What shows a line of progress."""


def connect(settings: Settings) -> Provider:
    """The provider that the settings name; the rehearsal is started when it does not run yet.

    Raises:
        CourseError: when its key is missing, or the rehearsal does not start.
    """
    if settings.provider == "vast":
        return Vast(settings.require("vast_api_key", VAST.keys_url))
    if settings.provider == "runpod":
        return RunPod(settings.require("runpod_api_key", RUNPOD.keys_url))
    server = rehearsal.ensure(settings)
    market = RunPod if settings.provider == "rehearsal-runpod" else Vast
    return market(server.token, server_url=server.url, rehearsal=True)


def configured(settings: Settings) -> list[Provider]:
    """Every provider on which something of the course may be rented now.

    Those whose key is set, and the rehearsal when something is rented there (also after a crash).
    """
    names = [name for name in ("vast", "runpod") if getattr(settings, f"{name}_api_key")]
    chosen = [settings.model_copy(update={"provider": name}) for name in names]
    if rehearsal.holds_rentals(settings):
        running = rehearsal.running(settings)  # whatever ENGINE is now, its machines are ours
        engine = running.engine if running else settings.engine
        update = {"provider": "rehearsal", "engine": engine}
        chosen.insert(0, settings.model_copy(update=update))
    return [connect(each) for each in chosen]


def preflight(settings: Settings) -> str:
    """One line for a notebook's first cell: who is paid, with what money, and what runs already.

    It starts nothing: of a rehearsal that is not running it says so.

    Returns:
        The provider, pretend or real money, the credit (or why it is not known), and how many
        instances of the course are rented now, on every provider of :func:`configured`.
    """
    pretend = settings.provider.startswith("rehearsal")
    try:
        asked = not pretend or rehearsal.running(settings)
        credit = f"credit: ${connect(settings).balance_usd():.2f}" if asked else "not started yet"
    except CourseError as error:
        credit = error.what if pretend else f"{error.what} (its instances are not counted)"
    counts, unknown = {}, []
    for provider in configured(settings):
        try:
            counts[provider.name] = len(provider.instances())
        except CourseError as error:
            unknown.append(f"{provider.name} cannot be asked: {error.what}")
    where = [f"{count} on {name}" for name, count in counts.items() if count] + unknown
    money = "pretend money" if pretend else "real money"
    now = f"{sum(counts.values())} ({', '.join(where)})" if where else "0"
    return f"provider: {settings.provider} ({money}), {credit}, your instances now: {now}"


def frame(records: Iterable[Offer | Instance]) -> pd.DataFrame:
    """Offers or instances as a table, one row each."""
    return pd.DataFrame(list(records))


def wait_running(
    provider: Provider, instance_id: str, *, timeout_s: float = 1800, progress: Say = print
) -> Instance:
    """Wait until the machine runs and its SSH address is known.

    Args:
        provider: where it is rented.
        instance_id: which one.
        timeout_s: give up after this many seconds; a fresh host pulls the image for minutes.
        progress: called with one line whenever there is something to show.

    Raises:
        CourseError: when it failed, is gone, or time is up; the log's tail is in the message.
    """
    began = time.monotonic()
    while True:
        instance = provider.instance(instance_id)
        if instance is None:
            raise CourseError(f"instance {instance_id} is gone", "rent another one")
        progress(f"{instance.status}: {instance.detail or 'no message yet'}")
        if instance.status == "running" and instance.ssh_port:
            return instance
        elapsed_s = time.monotonic() - began
        if instance.status in ("failed", "stopped") or elapsed_s > timeout_s:
            log = ""
            with contextlib.suppress(CourseError):
                log = provider.logs(instance_id, lines=5).strip()
            told = f"{instance.detail or 'no message'}\n{log}".strip()
            raise CourseError(
                f"instance {instance_id} is {instance.status} after {elapsed_s:.0f} s: {told}",
                "destroy it and rent another offer: `python -m helpers destroy`",
            )
        time.sleep(provider.poll_s)
