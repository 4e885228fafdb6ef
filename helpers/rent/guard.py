"""What stands between the reader and a surprise bill."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

import pandas as pd
from filelock import FileLock

from helpers.errors import CourseError
from helpers.progress import Progress, fact
from helpers.rent import deadman, market, ssh
from helpers.rent.connect import accounts, frame, preflight, wait_running
from helpers.rent.ledger import Ledger
from helpers.rent.market import Instance, Offer, OfferFilter, OfferGone, Provider, ours
from helpers.serve.spec import ServingSpec
from helpers.settings import Settings

HOSTS_TRIED = 3
AGAIN = "`python -m helpers destroy` again, or end it in the provider's console"
PRETEND = "pretend money: `python -m helpers rehearse --reset`"


def check(offer: Offer, settings: Settings, balance_usd: float, spent_usd: float = 0.0) -> None:
    """Refuse what costs more than the reader allowed, or than the account can pay.

    Args:
        offer: what would be rented.
        settings: ``max_usd_per_hour``, ``lifetime_hours`` and ``budget_usd``.
        balance_usd: the account's credit, dollars.
        spent_usd: what the course has cost so far, dollars.

    Raises:
        CourseError: with the figures.
    """
    price, hours = offer.usd_per_hour, settings.lifetime_hours
    if price > settings.max_usd_per_hour:
        raise CourseError(
            f"{offer.gpu} costs ${price:.2f}/h, your ceiling is ${settings.max_usd_per_hour:.2f}/h",
            "choose a cheaper offer, or raise MAX_USD_PER_HOUR in .env",
        )
    if spent_usd + price * hours > settings.budget_usd:
        raise CourseError(
            f"{hours:g} h of {offer.gpu} at ${price:.2f}/h and ${spent_usd:.2f} already spent "
            f"are more than your budget of ${settings.budget_usd:.2f}",
            f"lower LIFETIME_HOURS or raise BUDGET_USD in .env ({PRETEND})",
        )
    if price > balance_usd:
        raise CourseError(
            f"${balance_usd:.2f} of credit do not pay one hour at ${price:.2f}",
            f"top up at your provider ({PRETEND}), or choose a cheaper offer",
        )


def question(offer: Offer, settings: Settings, balance_usd: float) -> str:
    """What is asked before real money is spent."""
    price, hours = offer.usd_per_hour, settings.lifetime_hours
    return (
        f"Rent {offer.gpu_count}x {offer.gpu} on {offer.provider} at ${price:.3f}/h, "
        f"${price * hours:.2f} in all if it runs for {hours:g} h; "
        f"your credit is ${balance_usd:.2f}. Type yes to rent: "
    )


def confirm(offer: Offer, settings: Settings, balance_usd: float) -> None:
    """Ask before real money is spent.

    Raises:
        CourseError: when the answer is not yes, or nobody is there to answer.
    """
    with contextlib.suppress(EOFError, RuntimeError, NotImplementedError):  # nobody can answer
        if input(question(offer, settings, balance_usd)).strip().lower() in ("y", "yes"):
            return
    raise CourseError("nothing was rented: it was not confirmed", "type yes, or set CONFIRM=no")


# -- renting -------------------------------------------------------------------------------


def rent(
    provider: Provider,
    spec: ServingSpec,
    label: str,
    settings: Settings,
    wanted: OfferFilter | None = None,
    *,
    progress: Callable[[str], None] | None = None,
    loading_timeout_s: float = 1800,
    template_id: str = "",
) -> Instance:
    """The instance of this label: the one that is rented already, or a new one.

    Registers the reader's key first, takes the cheapest offer within the limits, the next one when
    somebody else was faster, and another host when a machine does not come up.

    Args:
        provider: where to rent.
        spec: what to serve.
        label: name of the purpose; running a notebook again finds its instance by it.
        settings: key, price ceiling, budget and lifetime.
        wanted: what the machine must have; the course's filter by default.
        progress: called with one line whenever there is something to show.
        loading_timeout_s: give a host up after this many seconds.
        template_id: rent from this template; the spec gives disk size and environment then.

    Returns:
        The instance, running and letting us in; the model may still be loading.

    Raises:
        CourseError: when nothing could be rented within the limits; nothing is left rented.
    """
    say, key = progress or Progress(), ssh.ensure_key(settings)

    def come_up(new: Instance) -> Instance:
        up = wait_running(provider, new.id, timeout_s=loading_timeout_s, progress=say)
        ssh.wait_login(up, settings, progress=say)
        fact(say, f"running: {up.gpu_count}x {up.gpu}, ${up.usd_per_hour:.3f}/h")
        return up

    settings.rehearsal_home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with FileLock(settings.rehearsal_home / f"rent-{provider.name}.lock"):  # two may ask at once
        instance = find(provider, label)
        if instance and instance.status == "failed":
            fact(say, f"instance {instance.id} has failed ({instance.detail}): it is destroyed")
            destroy(provider, instance.id)
        elif instance:
            fact(say, f"found instance {instance.id} by its label, nothing is rented")
            if instance.status == "stopped":
                provider.start(instance.id)
            return come_up(instance)

        def launch(offer: Offer, name: str) -> Instance:
            life_s = settings.lifetime_hours * 3600
            new = provider.launch(offer, spec, name, lifetime_s=life_s, template_id=template_id)
            return come_up(new)

        provider.register_key(key)
        wanted = wanted or OfferFilter(gpu_count=spec.gpus)
        return _rent_anew(provider, settings, wanted, launch, label, say)


def _rent_anew(
    provider: Provider,
    settings: Settings,
    wanted: OfferFilter,
    launch: Callable[[Offer, str], Instance],
    label: str,
    say: Callable[[str], None],
) -> Instance:
    """The cheapest offer within the limits whose machine comes up."""
    ledger = Ledger(settings, provider.name)
    ledger.compare(provider.instances())
    balance, offers = provider.balance_usd(), provider.offers(wanted)
    if not offers:
        raise CourseError("no offer matches the filter", "loosen it: less VRAM, a higher ceiling")
    failures: list[str] = []
    for number, offer in enumerate(offers):
        check(offer, settings, balance, ledger.spent_usd())
        if number == 0 and settings.confirm and not provider.rehearsal:
            confirm(offer, settings, balance)
        say(f"renting {offer.gpu} at ${offer.usd_per_hour:.3f}/h")
        # Written down before it is asked for: whatever happens, it is looked for by its label.
        name = market.unique_label(label)
        ledger.note(name, usd_per_hour=offer.usd_per_hour, began=time.time())
        try:
            return launch(offer, name)
        except OfferGone:
            ledger.note(name, ended=time.time())
            fact(say, f"{offer.gpu} was taken by somebody else, trying the next offer")
        except BaseException as error:
            try:
                found = find(provider, name)
            except CourseError:
                raise error from None  # nobody knows: it stays open in the ledger
            if found:
                destroy(provider, found.id)
            ledger.note(name, ended=time.time())
            if not (found and isinstance(error, CourseError)):
                raise
            failures.append(f"{offer.gpu}: {error.what}")
            fact(say, f"{failures[-1]}; destroyed")
        if len(failures) == HOSTS_TRIED:
            break
    tried = "\n".join(failures) or f"all {len(offers)} offers were taken while we tried"
    raise CourseError(f"nothing could be rented:\n{tried}", "search again in a few minutes")


def find(provider: Provider, label: str) -> Instance | None:
    """The instance that was rented under a label, None when there is none."""
    return next((i for i in provider.instances() if label in (i.label, purpose(i))), None)


def purpose(instance: Instance) -> str:
    """What an instance was rented for: its label without what we put around it."""
    return instance.label.removeprefix(market.LABEL_PREFIX).rpartition(":")[0]


def extend(instance: Instance, settings: Settings, hours: float) -> datetime:
    """Let an instance live for so many hours from now.

    Args:
        instance: it must be running: the deadline is kept there.
        settings: key, and ``lifetime_hours``, which is the most that is granted at once.
        hours: from now.

    Returns:
        When it will destroy itself.

    Raises:
        CourseError: when it cannot be reached, or more is asked for than the reader allowed.
    """
    if not 0 < hours <= settings.lifetime_hours:
        most = f"{settings.lifetime_hours:g} h"
        raise CourseError(f"{hours:g} h: {most} are what you allow at once", "see LIFETIME_HOURS")
    said = ssh.run(instance, settings, deadman.extend_command(hours * 3600))
    return datetime.fromtimestamp(int(said.split()[-1]))  # a greeting at login comes first


# -- ending --------------------------------------------------------------------------------


def destroy(provider: Provider, instance_id: str, timeout_s: float = 120) -> None:
    """Destroy an instance and return only when the provider no longer knows it.

    Stopped is not gone: a stopped instance's disk is billed until it is destroyed.

    Raises:
        CourseError: when it is still there after ``timeout_s`` seconds.
    """
    deadline = time.monotonic() + timeout_s
    for tunnel in [each for each in ssh.OPEN if each.instance.id == instance_id]:
        tunnel.close()
    provider.destroy(instance_id)
    # Asked in two ways: one odd "not found" must not pass for the end of all charges.
    while provider.instance(instance_id) or instance_id in {i.id for i in provider.instances()}:
        if time.monotonic() > deadline:
            raise CourseError(
                f"instance {instance_id} is still there {timeout_s:.0f} s after its destruction",
                "destroy it by hand now (on Vast.ai: https://cloud.vast.ai/instances/)",
            )
        time.sleep(provider.poll_s)


def end(settings: Settings, *labels: str) -> None:
    """Destroy the course's machines of these labels, or all of them, on every provider.

    It needs nothing of the notebook that rented them, so it works after a restart of the kernel,
    too. ``python -m helpers destroy`` is the same for all labels.

    Raises:
        CourseError: when a provider could not be asked or a machine not be destroyed, after all
            the others were.
    """
    found, failed = accounts(settings)
    for provider, rented in found.items():
        for machine in ours(rented):
            if labels and purpose(machine) not in labels:
                continue
            try:
                destroy(provider, machine.id)
                print(f"{provider.name}: instance {machine.id} ({machine.label}) is gone")
            except CourseError as error:
                failed.append(f"{provider.name}: {error.what}")
    print(preflight(settings))
    if failed:
        raise CourseError("not all is known to be gone: " + "; ".join(failed), AGAIN)


@contextlib.contextmanager
def rented(
    provider: Provider, spec: ServingSpec, label: str, settings: Settings, **options: Any
) -> Iterator[Instance]:
    """:func:`rent` (which takes the options), and :func:`destroy` on leaving, whatever happened."""
    try:
        yield rent(provider, spec, label, settings, **options)
    finally:
        if instance := find(provider, label):
            destroy(provider, instance.id)


def status(instances: Iterable[Instance]) -> pd.DataFrame:
    """What instances cost an hour and have cost about, e.g. those of ``provider.instances()``.

    Returns:
        One row an instance; ``about_usd`` is hours times the present price, an upper bound for
        machines that were stopped or loading for a while.
    """
    shown = ["provider", "id", "label", "status", "gpu_count", "gpu"]
    shown += ["usd_per_hour", "stopped_usd_per_hour", "created"]
    table = frame(instances).reindex(columns=shown)
    table["hours"] = (time.time() - table.pop("created")) / 3600
    table["about_usd"] = table.hours * table.usd_per_hour
    return table.round({"usd_per_hour": 3, "stopped_usd_per_hour": 4, "hours": 2, "about_usd": 3})
