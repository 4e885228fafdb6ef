"""Serving a model: what a rented machine is to run, whether it answers yet, and several of them.

A :class:`ServingSpec` says which model vLLM serves and how; every provider starts it from the same
spec. :func:`endpoint` waits until a server answers and gives what everything that measures takes.
``router`` puts several servers behind one address, and :func:`fleet` says how many a day's traffic
needs and what they cost. A :class:`Door` lets customers in, each with a key, limits and a bill.
"""

from helpers.serve import bill, places, router
from helpers.serve.bill import Price
from helpers.serve.customers import Limits
from helpers.serve.door import Door
from helpers.serve.fleet import Interruptible, Serverless, fleet
from helpers.serve.ready import endpoint
from helpers.serve.spec import MISTRAL_AWQ, ServingSpec

__all__ = [
    "MISTRAL_AWQ", "Door", "Interruptible", "Limits", "Price", "Serverless", "ServingSpec",
    "bill", "endpoint", "fleet", "places", "router",
]  # fmt: skip
