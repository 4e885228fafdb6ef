"""What all marketplaces have in common: the records they hand out, and the protocol."""

import difflib
import os
import re
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypedDict, Unpack

from helpers.errors import CourseError
from helpers.serve.spec import ServingSpec

# Everything we rent carries this, so that it is found again after any crash.
LABEL_PREFIX = "llm-course:"
LOOKS = 3  # how often a rental is looked for whose answer got lost


class NotFound(CourseError):
    """The service knows no such thing."""


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
        min_cuda: newest CUDA version the host's driver supports; vLLM's image asks for 13.0
            since vLLM 0.20.
        min_compute_capability: 8.0 (Ampere) brings BF16; AWQ alone would run on 7.5. RunPod does
            not say: there it means no V100.
        disk_gb: disk that will be rented with it, in GB.
        interruptible: machines rented by bid: cheaper, and paused as soon as somebody bids more.
    """

    gpu: tuple[str, ...] = ()
    gpu_count: int = 1
    min_vram_gb: float = 16
    max_usd_per_hour: float | None = None
    min_reliability: float = 0.98
    min_download_mbps: float = 300
    min_cuda: float = 13.0
    min_compute_capability: float = 8.0
    disk_gb: int = 40
    interruptible: bool = False

    def cheapest(self, offers: Iterable["Offer"]) -> list["Offer"]:
        """Those within the price ceiling, the cheapest first, twenty at most.

        The ceiling guards money: it is enforced here, whatever a service was asked for.
        """
        ceiling = self.max_usd_per_hour or float("inf")
        within = (offer for offer in offers if offer.usd_per_hour <= ceiling)
        return sorted(within, key=lambda offer: offer.usd_per_hour)[:20]


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A machine that can be rented now. Prices are US dollars an hour, disk included.

    What the provider does not publish is None.
    """

    id: str
    provider: str
    gpu: str
    gpu_count: int
    vram_gb: float
    usd_per_hour: float
    interruptible: bool = False
    min_bid_usd_per_hour: float | None = None
    bandwidth_gb_s: float | None = None
    reliability: float | None = None
    location: str = ""


@dataclass(frozen=True, kw_only=True)
class Instance:
    """A rented machine.

    ``status`` is one of ``creating``, ``loading``, ``running``, ``stopped`` and ``failed``;
    ``detail`` the provider's own words. ``usd_per_hour`` is what it costs in its present state,
    ``stopped_usd_per_hour`` what it costs when stopped: the disk stays billed. ``created`` is in
    seconds since 1970; ``cpu_cores`` is how many are its own, where the provider says so.
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
    cpu_cores: float | None = None

    @property
    def hardware(self) -> str:
        """What does the computing: in the rehearsal this machine, for its GPUs are only pretend."""
        if self.provider.startswith("rehearsal"):
            count = self.cpu_cores or os.cpu_count()
            return "1 CPU core" if count == 1 else f"{count} CPU cores"
        return f"{self.gpu_count}x {self.gpu}"


@dataclass(frozen=True, kw_only=True)
class Template:
    """A stored description of what to run: the "one click" of a marketplace.

    ``id`` is what ``launch(..., template_id=id)`` takes, ``own`` whether the account made it.
    """

    id: str
    name: str
    image: str
    own: bool


class Terms(TypedDict, total=False):
    """How to rent: what :meth:`Provider.launch` takes by name."""

    lifetime_s: float
    bid_usd_per_hour: float
    template_id: str


class Provider(Protocol):
    """What the course asks of a marketplace. Every call raises CourseError when it fails."""

    name: str
    rehearsal: bool
    poll_s: float  # seconds between two questions: rate limits forbid asking more often

    def __init__(self, name: str, rehearsal: bool) -> None:
        self.name, self.rehearsal = name, rehearsal
        self.poll_s = 0.5 if rehearsal else 10.0

    def balance_usd(self) -> float:
        """Credit that is left, in dollars."""

    def register_key(self, public_key: str) -> None:
        """Let a public key log in to instances launched from now on; no change if it can."""

    def offers(self, wanted: OfferFilter) -> list[Offer]:
        """Machines that match, the cheapest first."""

    def create(self, offer: Offer, spec: ServingSpec, label: str, terms: Terms) -> Instance:
        """Send the one request that rents, and never a second: :meth:`launch` calls it."""

    def everything(self) -> list[Instance]:
        """All that is rented on the account, whoever rented it."""

    def instances(self) -> list[Instance]:
        """What of it carries the course's label."""
        return ours(self.everything())

    def instance(self, instance_id: str) -> Instance | None:
        """One instance, None when it is gone."""

    def logs(self, instance_id: str, lines: int = 100) -> str:
        """Tail of the container's log."""

    def stop(self, instance_id: str) -> None:
        """Stop it; what is kept of its disk is billed."""

    def start(self, instance_id: str) -> None:
        """Start a stopped one again; on a real market the GPU may be taken meanwhile."""

    def destroy(self, instance_id: str) -> None:
        """End the rental and every charge; no error when it is gone already."""

    def templates(self) -> list[Template]:
        """The account's own templates, then the provider's for vLLM."""

    def create_template(self, spec: ServingSpec, name: str) -> str:
        """Keep a spec as a template of one's own, without the keys in its environment.

        Returns:
            The template's id.
        """

    def launch(
        self, offer: Offer, spec: ServingSpec, label: str, **terms: Unpack[Terms]
    ) -> Instance:
        """Rent an offer and start the server on it, once.

        When renting fails, its answer may be lost, but not the rental: the label tells. It is
        looked for more than once, because the service may still have been at work when the line
        broke.

        Args:
            offer: what to rent.
            spec: what to serve; with a template only its disk size and environment count.
            label: name of the purpose, e.g. ``"mistral"``; found again by ``instances()``.
            **terms: ``lifetime_s``, seconds after which the machine destroys itself (four hours);
                ``bid_usd_per_hour`` makes it interruptible, at this bid for the GPU;
                ``template_id`` rents from a template instead of the spec's image and script.

        Returns:
            The instance, also when it was rented and only the answer got lost.

        Raises:
            OfferGone: when somebody else was faster.
            CourseError: when it failed, and nothing is left rented; or when nobody knows, because
                the look-up failed as well: then it tells the label that the reader must look for.
            BaseException: what interrupted it; what had been rented is destroyed.
        """
        unique = unique_label(label)
        try:
            return self.create(offer, spec, unique, terms)
        except BaseException as error:
            interrupted = not isinstance(error, CourseError)
            for look in range(LOOKS if interrupted or isinstance(error, NoAnswer) else 1):
                time.sleep(self.poll_s if look else 0)
                if found := _labelled(self, unique, error):
                    if not interrupted:
                        return found
                    self.destroy(found.id)
                    break
            raise


def _labelled(provider: Provider, label: str, error: BaseException) -> Instance | None:
    try:
        return next((i for i in provider.instances() if i.label == label), None)
    except CourseError as unknown:
        raise CourseError(
            f"renting failed, and nobody knows whether it is rented all the same ({unknown.what})",
            f"when the network is back: `python -m helpers status` (label {label})",
        ) from error


def ours(instances: Iterable[Instance]) -> list[Instance]:
    """Those that carry the course's label."""
    return [instance for instance in instances if instance.label.startswith(LABEL_PREFIX)]


def unique_label(purpose: str) -> str:
    """The label of one rental, by which it is found even when the answer got lost."""
    made = purpose.startswith(LABEL_PREFIX)
    return purpose if made else f"{LABEL_PREFIX}{purpose}:{uuid.uuid4().hex[:8]}"


def plain(gpu: str) -> str:
    """A GPU's name without what one or another writes around it: NVIDIA_GeForce_RTX_4090."""
    return re.sub(r"^(nvidia )?(geforce )?", "", gpu.replace("_", " ").strip(), flags=re.IGNORECASE)


def check_names(wanted: Iterable[str], known: Iterable[str]) -> None:
    """Names of GPUs that nothing was found for, compared with those on offer.

    Raises:
        CourseError: when there is no such name, with those that are close to it.
    """
    names = {plain(name).lower(): name for name in known}
    for gpu in wanted:
        if names and plain(gpu).lower() not in names:
            close = difflib.get_close_matches(plain(gpu).lower(), names, cutoff=0.5)
            some = " or ".join(names[name] for name in close or sorted(names)[:9])
            what = f"no machine on offer has a GPU called {gpu!r}"
            raise CourseError(what, f"did you mean {some}?")


def is_secret(name: str) -> bool:
    """Does an environment variable of that name hold something that must stay out of sight?"""
    return any(word in name.upper() for word in ("TOKEN", "KEY", "SECRET", "PASSWORD"))
