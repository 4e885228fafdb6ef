"""A certificate for a door, by an authority of one's own that nobody else trusts."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

from helpers import files

AUTHORITY = "rehearsal's own authority"


def make(folder: Path, host: str, days: float = 90) -> None:
    """Make a certificate, and the authority that signs it where there is none yet.

    Args:
        folder: gets ``ca.pem`` (what clients trust), ``ca-key.pem``, ``fullchain.pem`` and
            ``privkey.pem`` (what nginx shows). Keys are for their owner alone.
        host: name or IP address for which it holds.
        days: for how long.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority, its_key = folder / "ca.pem", folder / "ca-key.pem"
    if not authority.exists():
        made = trustme.CA(organization_name=AUTHORITY)
        files.replace(its_key, made.private_key_pem.bytes())
        files.replace(authority, made.cert_pem.bytes())
    now = datetime.now(UTC)
    signer = trustme.CA.from_pem(authority.read_bytes(), its_key.read_bytes())
    began, ends = now - timedelta(minutes=5), now + timedelta(days=days)  # clocks differ
    shown = signer.issue_cert(host, organization_name=host, not_before=began, not_after=ends)
    files.replace(folder / "privkey.pem", shown.private_key_pem.bytes())
    files.replace(folder / "fullchain.pem", shown.cert_chain_pems[0].bytes())
