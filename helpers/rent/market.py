"""One protocol for every marketplace, and the records that cross it."""

import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Protocol

import pandas as pd

from helpers.errors import CourseError
from helpers.serve.spec import ServingSpec
from helpers.settings import Settings

# Everything we rent carries this, so that it is found again after any crash.
LABEL_PREFIX = "llm-course:"
LIFETIME_S = 4 * 3600.0  # a machine that nobody extends destroys itself then


class OfferGone(CourseError):
    """Somebody else rented the offer between the search and the launch: take the next one."""


class NoAnswer(CourseError):
    """The service did not answer: whether it acted is not known."""


@dataclass(frozen=True, kw_only=True)
class OfferFilter:
    """What a machine must have to be offered; the defaults suit a quantized 7B model on vLLM.

    Args:
        gpu: names of acceptable GPUs as the provider spells them; empty for any.
        gpu_count: number of GPUs in the machine.
        min_vram_gb: memory of one GPU, in GB.
        max_usd_per_hour: price ceiling with disk, in dollars an hour; None for no ceiling.
        min_reliability: share of time the host was up, 0 to 1.
        min_download_mbps: measured download speed of the host, in Mbit/s.
        verified: only hosts the provider has checked.
        min_cuda: newest CUDA version the host's driver supports; vLLM's image asks for 13.0
            since vLLM 0.20.
        min_compute_capability: 8.0 (Ampere) brings BF16; AWQ alone would run on 7.5.
        disk_gb: disk that will be rented with it, in GB.
        interruptible: ask for machines by bid, cheaper, paused at once when outbid.
        limit: at most this many offers.
    """

    gpu: tuple[str, ...] = ()
    gpu_count: int = 1
    min_vram_gb: float = 16
    max_usd_per_hour: float | None = None
    min_reliability: float = 0.98
    min_download_mbps: float = 300
    verified: bool = True
    min_cuda: float = 13.0
    min_compute_capability: float = 8.0
    disk_gb: int = 40
    interruptible: bool = False
    limit: int = 20


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A machine that can be rented now. Prices are US dollars an hour, disk included."""

    id: str
    provider: str
    gpu: str
    gpu_count: int
    vram_gb: float
    bandwidth_gb_s: float | None
    usd_per_hour: float
    interruptible: bool
    min_bid_usd_per_hour: float | None
    reliability: float | None
    download_mbps: float | None
    cuda: float | None
    compute_capability: float | None
    verified: bool
    location: str


@dataclass(frozen=True, kw_only=True)
class Instance:
    """A rented machine.

    ``status`` is one of ``creating``, ``loading``, ``running``, ``stopped`` and ``failed``;
    ``detail`` the provider's own words. ``usd_per_hour`` is what it costs in its present state,
    ``stopped_usd_per_hour`` what it costs when stopped: the disk stays billed.
    """

    id: str
    provider: str
    label: str
    status: str
    detail: str
    gpu: str
    gpu_count: int
    usd_per_hour: float
    stopped_usd_per_hour: float
    created: float
    ssh_host: str | None = None
    ssh_port: int | None = None
    ssh_user: str = "root"
    hardware: str = ""

    @property
    def hours(self) -> float:
        """Hours since the contract was made."""
        return (time.time() - self.created) / 3600


@dataclass(frozen=True, kw_only=True)
class Template:
    """A stored description of what to run: the "one click" of a marketplace.

    ``id`` is what ``launch(..., template_hash=id)`` takes, ``own`` whether the account made it,
    ``env`` the names of its environment variables (values may be secret).
    """

    id: str
    name: str
    image: str
    own: bool
    disk_gb: float
    env: tuple[str, ...] = ()


class Provider(Protocol):
    """What the course asks of a marketplace. Every call raises CourseError when it fails."""

    name: str
    rehearsal: bool
    poll_s: float  # the provider's rate limits forbid to ask more often

    def balance_usd(self) -> float:
        """Credit that is left, in dollars."""

    def register_key(self, public_key: str) -> None:
        """Let a public key log in to instances launched from now on; no change if it can."""

    def offers(self, wanted: OfferFilter) -> list[Offer]:
        """Machines that match, the cheapest first."""

    def launch(self, offer: Offer, spec: ServingSpec, label: str, **options) -> Instance:
        """Rent an offer and start the server on it; raises OfferGone when it is taken."""

    def instances(self) -> list[Instance]:
        """Everything rented on the account that carries the course's label."""

    def instance(self, instance_id: str) -> Instance | None:
        """One instance, None when it is gone."""

    def logs(self, instance_id: str, lines: int = 100) -> str:
        """Tail of the container's log."""

    def stop(self, instance_id: str) -> None:
        """Stop it; what is kept of its disk is billed."""

    def start(self, instance_id: str) -> None:
        """Start a stopped one again."""

    def destroy(self, instance_id: str) -> None:
        """End the rental and every charge; no error when it is gone already."""

    def templates(self, name: str = "vLLM") -> list[Template]:
        """Templates whose name contains ``name``: the account's own, then the provider's."""

    def create_template(self, spec: ServingSpec, name: str) -> Template:
        """Keep a spec as a template of one's own; keys in its environment are left out."""


def new_label(purpose: str) -> str:
    """A label that no other rental has, found again by its purpose."""
    return f"{LABEL_PREFIX}{purpose}:{uuid.uuid4().hex[:8]}"


def after_failed_launch(
    provider: Provider, label: str, doing: str, error: BaseException, looks: int = 3
) -> Instance:
    """What to do when the call that rents has raised: its answer may be lost, not the rental.

    The unique label tells. It is looked up more than once, because the service may still have
    been at work when the line broke.

    Returns:
        The instance, when it was rented and only the answer got lost.

    Raises:
        BaseException: the error itself, when nothing was rented, or after destroying what was
            rented when the reader interrupted.
        CourseError: when the look-up fails as well: then only the reader can look.
    """
    lost = isinstance(error, NoAnswer) or not isinstance(error, CourseError)
    for look in range(looks if lost else 1):
        if look:
            time.sleep(provider.poll_s)
        try:
            found = next((i for i in provider.instances() if i.label == label), None)
        except CourseError as unknown:
            raise CourseError(
                f"{doing} failed, and so did the look whether it is rented nevertheless "
                f"({unknown.what})",
                f"when the network is back: `python -m helpers status` (label {label})",
            ) from error
        if found is not None and isinstance(error, CourseError):
            return found
        if found is not None:
            provider.destroy(found.id)  # interrupted by the reader: leave nothing rented
            break
    raise error


def is_secret(name: str) -> bool:
    """Does an environment variable of that name hold something that must stay out of sight?"""
    return any(word in name.upper() for word in ("TOKEN", "KEY", "SECRET", "PASSWORD"))


def connect(settings: Settings) -> Provider:
    """The provider that the settings name.

    Raises:
        CourseError: when its key is missing.
    """
    from helpers.rent.runpod import RunPod
    from helpers.rent.runpod_http import KEYS_URL
    from helpers.rent.vast import Vast

    if settings.provider == "vast":
        key = settings.require("vast_api_key", "https://cloud.vast.ai/manage-keys/")
        return Vast(api_key=key)
    if settings.provider == "runpod":
        return RunPod(api_key=settings.require("runpod_api_key", KEYS_URL))
    from helpers import rehearsal

    server = rehearsal.ensure(settings)
    market = RunPod if settings.provider == "rehearsal-runpod" else Vast
    return market(api_key=server.token, server_url=server.url, rehearsal=True)


def configured(settings: Settings) -> list[Provider]:
    """Every provider on which something of the course may be rented now.

    Those whose key is set, and the rehearsal when it runs (or crashed with something rented).
    """
    from helpers import rehearsal

    found = []
    if rehearsal.holds_rentals(settings):
        running = rehearsal.running(settings)  # whatever ENGINE is now, its machines are ours
        engine = running.engine if running else settings.engine
        mine = {"provider": "rehearsal", "engine": engine}
        found.append(connect(settings.model_copy(update=mine)))
    for name in ("vast", "runpod"):
        if getattr(settings, f"{name}_api_key") is not None:
            found.append(connect(settings.model_copy(update={"provider": name})))
    return found


def rented(settings: Settings) -> str:
    """What is rented now, in words, on every provider of :func:`configured`."""
    counts = []
    for provider in configured(settings):
        try:
            counts.append(f"{len(provider.instances())} on {provider.name}")
        except CourseError as error:
            counts.append(f"{provider.name} does not say ({error.what})")
    return ", ".join(counts) or "nothing"


def frame(records: Iterable[Offer | Instance]) -> pd.DataFrame:
    """Offers or instances as a table, one row each."""
    return pd.DataFrame([asdict(record) for record in records])


def wait_running(
    provider: Provider,
    instance_id: str,
    *,
    timeout_s: float = 1800,
    progress: Callable[[str], None] = print,
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
    deadline = time.monotonic() + timeout_s
    began = time.monotonic()
    while True:
        instance = provider.instance(instance_id)
        if instance is None:
            raise CourseError(f"instance {instance_id} is gone", "rent another one")
        elapsed = time.monotonic() - began
        progress(f"{instance.status}: {instance.detail or 'no message yet'}")
        if instance.status == "running" and instance.ssh_port:
            return instance
        if instance.status in ("failed", "stopped") or time.monotonic() > deadline:
            told = f"{instance.detail or 'no message'}\n{_log_tail(provider, instance_id)}".strip()
            raise CourseError(
                f"instance {instance_id} is {instance.status} after {elapsed:.0f} s: {told}",
                "destroy it and rent another offer: `python -m helpers destroy`",
            )
        time.sleep(provider.poll_s)


def _log_tail(provider: Provider, instance_id: str, lines: int = 5) -> str:
    try:
        return provider.logs(instance_id, lines).strip()
    except CourseError as error:
        return f"(no log: {error.what})"
