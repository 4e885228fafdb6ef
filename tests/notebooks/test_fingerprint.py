"""The fingerprint of a notebook changes with what its code does, and with nothing else."""

import nbformat
from fingerprint import fingerprints

FILES = {
    "__init__.py": "",
    "near.py": '"""Words."""\nfrom helpers import far\n\n\ndef one():\n    return far.two()\n',
    "far.py": 'PROGRAM = "python -m helpers.started $1"\ntwo = lambda: 2\n',
    "started.py": "print(3)\n",
    "other.py": "print(4)\n",
}


def test_fingerprint_follows_what_the_code_does(tmp_path):
    """A helper's code counts, however far away; its comments, docstrings and layout do not."""
    (tmp_path / "helpers").mkdir()
    for name, text in FILES.items():
        (tmp_path / "helpers" / name).write_text(text)
    cell = nbformat.v4.new_code_cell("from helpers import near\nawait near.one()")
    notebook = nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_markdown_cell("Words.")])

    def after(name: str, old: str, new: str) -> dict[str, str]:
        path = tmp_path / "helpers" / name
        path.write_text(FILES[name].replace(old, new))
        now = fingerprints(notebook, tmp_path)
        path.write_text(FILES[name])
        return now

    before = fingerprints(notebook, tmp_path)
    assert after("near.py", "Words.", "Other words.") == before
    assert after("near.py", "def", "# A remark\ndef") == before
    assert after("other.py", "4", "5") == before
    for name, old, new in (
        ("near.py", "two()", "two"),
        ("far.py", "2", "0"),
        ("started.py", "3", "0"),
    ):
        now = after(name, old, new)
        assert now["helpers_sha256"] != before["helpers_sha256"], name
        assert now["code_sha256"] == before["code_sha256"]
    notebook.cells[1].source = "Better words."
    assert fingerprints(notebook, tmp_path) == before
    cell.source += "\n1 + 1"
    assert fingerprints(notebook, tmp_path)["code_sha256"] != before["code_sha256"]
