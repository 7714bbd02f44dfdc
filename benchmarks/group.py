"""So many processes of one command as members of one group: `python -m benchmarks.group 4 COMMAND...`.

Each has an instance number of its own in its environment. All end when one does, or at a SIGTERM.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

END_SECONDS = 20.0
LOOK_SECONDS = 0.2


def main() -> int:
    ending: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: ending.append(True))
    members = [
        subprocess.Popen(sys.argv[2:], env={**os.environ, "MILLRACE_INSTANCE": str(n)})
        for n in range(int(sys.argv[1]))
    ]
    while not ending and all(member.poll() is None for member in members):
        time.sleep(LOOK_SECONDS)
    for member in members:
        member.terminate()
    for member in members:
        with suppress(subprocess.TimeoutExpired):
            member.wait(END_SECONDS)
        member.kill()
    return max((abs(member.wait()) for member in members), default=0)


if __name__ == "__main__":
    sys.exit(main())
