"""A file that is there whole, or as it was before."""

import os
import tempfile
from pathlib import Path


def replace(path: Path, text: str | bytes) -> None:
    """Replace a file at once: who reads it finds the old or the new one, never half of it.

    It is a new file each time (nginx takes a certificate written in place for the old one), for its
    owner alone, and two writers do not mix theirs. What root writes belongs to the folder's owner.
    A process may be killed at any moment; after a power failure the old one may be back.

    Args:
        path: the file, in a folder that exists.
        text: all that it is to hold.
    """
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
        file.write(text.encode() if isinstance(text, str) else text)
    folder = path.parent.stat()
    if folder.st_uid != os.geteuid():
        os.chown(file.name, folder.st_uid, folder.st_gid)
    Path(file.name).replace(path)
