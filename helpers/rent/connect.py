"""From the settings to a provider, and from a rental to a machine that runs."""

import contextlib
import time
from collections.abc import Callable, Iterable

import pandas as pd

from helpers import rehearsal
from helpers.errors import CourseError
from helpers.rent.calls import MISFITS, RUNPOD, VAST
from helpers.rent.ledger import Ledger
from helpers.rent.market import Instance, Offer, Provider, ours
from helpers.rent.runpod import RunPod
from helpers.rent.vast import Vast
from helpers.settings import Settings

Say = Callable[[str], None]  # what shows a line of progress


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


def accounts(settings: Settings) -> tuple[dict[Provider, list[Instance]], list[str]]:
    """Every provider on which something of the course may be rented now, asked what is.

    Those whose key is set, the chosen one, those whose ledger has something open, and the
    rehearsal when it runs or holds rentals (also after a crash).

    Returns:
        All that is rented at each, the course's or not (:func:`helpers.rent.market.ours`), and a
        sentence for each that could not be asked: what is rented there, nobody knows.
    """
    found: dict[Provider, list[Instance]] = {}
    unknown = []
    pretend = settings.provider if settings.provider.startswith("rehearsal") else "rehearsal"
    for name in ("vast", "runpod", pretend):
        one = settings.model_copy(update={"provider": name})
        try:
            if _may_hold(one, chosen=settings.provider == name):
                if server := rehearsal.running(one):
                    # Whatever ENGINE is now, its machines are ours.
                    one = one.model_copy(update={"engine": server.engine})
                provider = connect(one)
                found[provider] = provider.everything()
                Ledger(one, name).compare(found[provider])
        except CourseError as error:
            unknown.append(f"{name} cannot be asked: {error.what}")
    return found, unknown


def _may_hold(settings: Settings, chosen: bool) -> bool:
    """May something be rented at the provider of these settings?"""
    name = settings.provider
    if name in ("vast", "runpod"):
        key = getattr(settings, f"{name}_api_key")
        return bool(chosen or key or Ledger(settings, name).open())
    try:
        return bool(rehearsal.running(settings)) or rehearsal.holds_rentals(settings)
    except (OSError, *MISFITS):
        hint = "python -m helpers rehearse --reset"
        raise CourseError("its books (state.json) are damaged", hint) from None


def preflight(settings: Settings) -> str:
    """One line for a notebook's first cell: who is paid, with what money, and what runs already.

    It starts nothing: of a rehearsal that is not running it says so.

    Returns:
        The provider, pretend or real money, the credit (or why it is not known), and how many
        instances of the course are rented now, on every provider of :func:`accounts`.
    """
    pretend = settings.provider.startswith("rehearsal")
    try:
        asked = not pretend or rehearsal.running(settings)
        credit = f"credit: ${connect(settings).balance_usd():.2f}" if asked else "not started yet"
    except CourseError as error:
        credit = error.what
    found, where = accounts(settings)
    least = "at least " if where else ""
    mine = {provider.name: len(ours(rented)) for provider, rented in found.items()}
    for provider, rented in found.items():
        if count := mine[provider.name]:
            where.append(f"{count} on {provider.name}")
        if others := len(rented) - count:
            where.append(f"{others} more on {provider.name} without the course's label")
    now = f"{least}{sum(mine.values())}" + (f" ({', '.join(where)})" if where else "")
    money = "pretend money" if pretend else "real money"
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
            what = f"instance {instance_id} is {instance.status} after {elapsed_s:.0f} s: {told}"
            hint = "destroy it and rent another offer: `python -m helpers destroy`"
            raise CourseError(what, hint)
        time.sleep(provider.poll_s)
