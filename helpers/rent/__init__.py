"""From an account to a machine that lets us in: offers, prices, keys, a tunnel, and the end of it.

``connect(settings)`` gives the provider that the settings name (the free rehearsal by default);
``guard`` rents from it within the reader's limits and destroys; ``ssh`` makes the key and opens
the tunnel. Whatever the provider, the same records come out: ``Offer`` and ``Instance``.
``skypilot`` describes a server for AWS, Azure and other clouds, ``serverless`` for Vast
Serverless. This room knows nothing of tokens: what it hands on is an address.
"""

from helpers.rent import guard, serverless, skypilot, ssh
from helpers.rent.connect import accounts, connect, frame, preflight, wait_running
from helpers.rent.market import Instance, Offer, OfferFilter, ours

__all__ = [
    "Instance", "Offer", "OfferFilter", "accounts", "connect", "frame", "guard", "ours",
    "preflight", "serverless", "skypilot", "ssh", "wait_running",
]  # fmt: skip
