"""The dead-man's switch: a rented machine ends itself when its time is up, whoever is awake.

A small loop on the instance compares the clock with a deadline in a file there, and past it asks
the provider to destroy this very machine, with the key that the provider gives each machine for
itself alone. It needs nothing of the reader's: no laptop, no kernel, no account key. A stopped
instance runs no loop, so it cannot end itself; only ``destroy`` ends its disk's charge.
"""

DEADLINE_FILE = ".llm_course_deadline"
PERIOD_S = 5

# What the provider expects, from the environment it gives the machine. The address can be
# overruled, as the rehearsal does.
_DESTROY = {
    "vast": (
        "f\"{e.get('VAST_URL', 'https://console.vast.ai')}/api/v0/instances/{e['CONTAINER_ID']}/\"",
        "CONTAINER_API_KEY",
    ),
    "runpod": (
        "f\"{e.get('RUNPOD_URL', 'https://api.runpod.io')}/v2/pods/{e['RUNPOD_POD_ID']}\"",
        "RUNPOD_API_KEY",
    ),
}


def script(provider: str, lifetime_s: float) -> str:
    """Shell lines that arm the switch; they belong at the start of what an instance boots.

    The deadline is set at the first boot only: a restart does not prolong it.

    Args:
        provider: ``"vast"`` or ``"runpod"``: whose API destroys the machine.
        lifetime_s: seconds from the first boot until then.
    """
    url, key = _DESTROY[provider]
    call = (
        "import os, urllib.request as r; e = os.environ; "
        f"r.urlopen(r.Request({url}, b'{{}}', method='DELETE', headers="
        f"{{'Authorization': 'Bearer ' + e['{key}'], 'Content-Type': 'application/json'}}), "
        "timeout=30)"
    )
    # In a file of its own: the quotes of such a line survive no further quoting.
    return "\n".join(
        [
            "# dead-man's switch: past the deadline this machine destroys itself",
            f"test -s ~/{DEADLINE_FILE} || "
            f"echo $(($(date +%s) + {lifetime_s:.0f})) > ~/{DEADLINE_FILE}",
            f"cat > ~/.llm_course_destroy.py <<'END'\n{call}\nEND",
            f"(while sleep {PERIOD_S}; do",
            f'  [ "$(date +%s)" -lt "$(cat ~/{DEADLINE_FILE})" ] '
            "|| python3 ~/.llm_course_destroy.py",
            "done) > ~/deadman.log 2>&1 &",
        ]
    )


def extend_command(lifetime_s: float) -> str:
    """Shell line that sets the deadline to so many seconds from now, and prints it.

    The file is replaced in one step, so that the loop never reads half of it.
    """
    return (
        f"echo $(($(date +%s) + {lifetime_s:.0f})) > ~/{DEADLINE_FILE}.new && "
        f"mv ~/{DEADLINE_FILE}.new ~/{DEADLINE_FILE} && cat ~/{DEADLINE_FILE}"
    )
