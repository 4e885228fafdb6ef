"""The dead-man's switch: a rented machine ends itself when its time is up, whoever is awake.

A small loop on the instance compares the clock with a deadline in a file there, and past it asks
the provider to destroy this very machine, with the key that the provider gives each machine for
itself alone. It needs nothing of the reader's: no laptop, no kernel, no account key. A stopped
instance runs no loop, so it cannot end itself; only ``destroy`` ends its disk's charge.
"""

from helpers.settings import ASSETS

LIFETIME_S = 4 * 3600.0  # a machine that nobody extends destroys itself then

# The deadline is set at the first boot only: a restart does not prolong it. The request stands in
# a file of its own, because its quotes would survive no further quoting.
SCRIPT = (ASSETS / "deadman.sh").read_text().rstrip()
EXTEND = """\
echo $(($(date +%s) + @LIFETIME_S@)) > ~/.llm_course_deadline.new &&
mv ~/.llm_course_deadline.new ~/.llm_course_deadline && cat ~/.llm_course_deadline"""

# Where a machine asks for its own end, and with which key: both from the environment that the
# provider gives it. The rehearsal sets another address.
_OWN = {
    "vast": (
        "${VAST_URL:-https://console.vast.ai}/api/v0/instances/$CONTAINER_ID/",
        "$CONTAINER_API_KEY",
    ),
    "runpod": ("${RUNPOD_URL:-https://api.runpod.io}/v2/pods/$RUNPOD_POD_ID", "$RUNPOD_API_KEY"),
}


def script(provider: str, lifetime_s: float = LIFETIME_S) -> str:
    """Shell lines that arm the switch; they belong at the start of what an instance boots.

    Args:
        provider: ``"vast"`` or ``"runpod"``: whose API destroys the machine.
        lifetime_s: seconds from the first boot until then.
    """
    url, key = _OWN[provider]
    lines = SCRIPT.replace("@LIFETIME_S@", f"{lifetime_s:.0f}")
    return lines.replace("@URL@", url).replace("@KEY@", key)


def extend_command(lifetime_s: float) -> str:
    """Shell lines that set the deadline to so many seconds from now, and print it.

    The file is replaced in one step, so that the loop never reads half of it.
    """
    return EXTEND.replace("@LIFETIME_S@", f"{lifetime_s:.0f}")
