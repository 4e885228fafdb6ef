"""What stands between the reader and a surprise bill."""

import contextlib
import time
from collections.abc import Callable, Iterator

import pandas as pd
from filelock import FileLock

from helpers import providers, ssh
from helpers.errors import CourseError
from helpers.progress import Progress
from helpers.providers import LABEL_PREFIX, Instance, Offer, OfferFilter, OfferGone, Provider
from helpers.serving import ServingSpec
from helpers.settings import Settings

GONE_TIMEOUT_S = 120.0


def check_price(offer: Offer, settings: Settings, balance_usd: float) -> None:
    """Refuse what costs more than the reader allowed, or than an hour's credit.

    Raises:
        CourseError: with the figures.
    """
    if offer.usd_per_hour > settings.max_usd_per_hour:
        raise CourseError(
            f"{offer.gpu} costs ${offer.usd_per_hour:.2f}/h, "
            f"your ceiling is ${settings.max_usd_per_hour:.2f}/h",
            "choose a cheaper offer, or raise MAX_USD_PER_HOUR in .env",
        )
    if offer.usd_per_hour > balance_usd:
        raise CourseError(
            f"${balance_usd:.2f} of credit do not pay one hour at ${offer.usd_per_hour:.2f}",
            "top up at https://cloud.vast.ai/billing/ or choose a cheaper offer",
        )


def rent(
    provider: Provider,
    spec: ServingSpec,
    label: str,
    settings: Settings,
    wanted: OfferFilter | None = None,
    progress: Callable[[str], None] | None = None,
) -> Instance:
    """The instance of this label: the one that runs already, or a newly rented one.

    Registers the reader's key first (machines only get the keys known when they are made), takes
    the cheapest offer within the ceiling, and the next one when somebody else was faster.

    Args:
        provider: where to rent.
        spec: what to serve.
        label: name of the purpose; running a notebook again finds its instance by it.
        settings: key and price ceiling.
        wanted: what the machine must have; the course's filter by default.
        progress: called with one line whenever there is something to show.

    Returns:
        The instance, running and letting us in; the model may still be loading.

    Raises:
        CourseError: when nothing could be rented within the limits.
    """
    say = progress or Progress()
    lock = settings.rehearsal_home / f"rent-{provider.name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with FileLock(lock):  # two notebooks may ask at once
        instance = find(provider, label)
        if instance is not None and instance.status == "failed":
            say(f"instance {instance.id} has failed ({instance.detail}): it is destroyed")
            destroy(provider, instance.id)
            instance = None
        if instance is None:
            instance = _rent_cheapest(provider, spec, label, settings, wanted or OfferFilter(), say)
        else:
            say(f"found instance {instance.id} by its label, nothing is rented")
            if instance.status == "stopped":
                provider.start(instance.id)
    instance = providers.wait_running(provider, instance.id, progress=say)
    ssh.wait_login(instance, settings, progress=say)
    say(f"running: {instance.gpu_count}x {instance.gpu}, ${instance.usd_per_hour:.3f}/h")
    return instance


def _rent_cheapest(provider, spec, label, settings, wanted, say) -> Instance:
    provider.register_key(ssh.ensure_key(settings))
    balance = provider.balance_usd()
    offers = provider.offers(wanted)
    if not offers:
        raise CourseError("no offer matches the filter", "loosen it: less VRAM, a higher ceiling")
    for offer in offers:
        check_price(offer, settings, balance)
        try:
            say(f"renting {offer.gpu} at ${offer.usd_per_hour:.3f}/h")
            return provider.launch(offer, spec, label)
        except OfferGone:
            say(f"{offer.gpu} was taken by somebody else, trying the next offer")
    raise CourseError(
        f"all {len(offers)} offers were taken while we tried", "search again in a minute"
    )


def find(provider: Provider, label: str) -> Instance | None:
    """The instance that was rented under a label, None when there is none."""
    prefix = f"{LABEL_PREFIX}{label}:"
    return next((i for i in provider.instances() if i.label.startswith(prefix)), None)


def destroy(provider: Provider, instance_id: str, timeout_s: float = GONE_TIMEOUT_S) -> None:
    """Destroy an instance and return only when the provider no longer knows it.

    Raises:
        CourseError: when it is still there after ``timeout_s`` seconds.
    """
    deadline = time.monotonic() + timeout_s
    provider.destroy(instance_id)
    while provider.instance(instance_id) is not None:
        if time.monotonic() > deadline:
            raise CourseError(
                f"instance {instance_id} is still there {timeout_s:.0f} s after its destruction",
                "destroy it by hand now: https://cloud.vast.ai/instances/",
            )
        time.sleep(provider.poll_s)


@contextlib.contextmanager
def rented(
    provider: Provider, spec: ServingSpec, label: str, settings: Settings, **options
) -> Iterator[Instance]:
    """:func:`rent`, and :func:`destroy` on leaving, whatever happened."""
    try:
        yield rent(provider, spec, label, settings, **options)
    finally:
        instance = find(provider, label)
        if instance is not None:
            destroy(provider, instance.id)


def status(provider: Provider) -> pd.DataFrame:
    """Everything of the course that is rented, what it costs an hour and has cost about.

    Returns:
        One row an instance; ``about_usd`` is hours times the present price, an upper bound for
        machines that were stopped or loading for a while.
    """
    rows = [
        {
            "provider": i.provider,
            "id": i.id,
            "label": i.label,
            "status": i.status,
            "gpu": f"{i.gpu_count}x {i.gpu}",
            "usd_per_hour": round(i.usd_per_hour, 3),
            "usd_per_hour_stopped": round(i.stopped_usd_per_hour, 4),
            "hours": round(i.hours, 2),
            "about_usd": round(i.hours * i.usd_per_hour, 3),
        }
        for i in provider.instances()
    ]
    return pd.DataFrame(rows)
