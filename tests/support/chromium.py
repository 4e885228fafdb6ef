"""The browser of the tests, and the one notebook that runs in it instead of a bare kernel."""

import shutil

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
IN_JUPYTERLAB = "04_throughput"
