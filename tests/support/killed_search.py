"""A search in a process that is killed: ``python killed_search.py LOG RESULT [SECONDS]``."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from worker_cases import SPACE, values

from bnas.search import NSGA2, Objective, Searcher, SearchSettings

OBJECTIVES = (Objective("accuracy", "max"), Objective("macs", "min"))


def main(log: str, result: str, seconds: float | None) -> None:
    """Search; after `seconds` the process kills itself, in the middle of whatever it does then."""
    if seconds is not None:
        threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    start = time.perf_counter()
    searcher = Searcher(
        SPACE, values, OBJECTIVES, SearchSettings(algorithm=NSGA2(population=12), num_evals=120, seed=7), log=log
    )
    front = [(one.index, one.subnet.to_json(), dict(one.values)) for one in searcher.run().pareto()]
    Path(result).write_text(repr(front), encoding="utf-8")
    Path(f"{result}.seconds").write_text(str(time.perf_counter() - start), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]) if len(sys.argv) > 3 else None)
