"""``vllm`` in its own environment, started by ``helpers/rehearsal/engine_vllm.py``.

vLLM has processes of its own, and when the machine ends, its whole group is killed. Python's
tracker of shared memory stays out of the group: it outlives the others for a moment and removes
what they leave in /dev/shm.
"""

import os
import sys
from multiprocessing import resource_tracker

if __name__ == "__main__":
    group = os.getpgrp()
    os.setpgid(0, 0)
    resource_tracker.ensure_running()
    os.setpgid(0, group)
    sys.argv[0] = "vllm"
    from vllm.entrypoints.cli.main import main

    main()
