"""Rented machines for tests that need no model: nothing has to load on them."""

from helpers.serve.spec import ServingSpec


class Idle(ServingSpec):
    """A spec whose machine boots, arms its dead-man's switch, and serves nothing."""

    def onstart(self, before: str = "") -> str:
        """Whatever is to run first, and no server."""
        return f"#!/bin/sh\n{before}\n"
