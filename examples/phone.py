"""A phone that is none: runs an ONNX file in a process of its own, slowly, and prints the milliseconds of a run.

    python examples/phone.py model.onnx x:1x3x32x32

`two_targets.py` starts it where you would start a program of yours, over ssh or adb, for a simulator or a board. It
runs the file on ONNX Runtime without optimising the graph, on one thread: so it spends its time elsewhere than a
server does, as a phone would.
"""

from __future__ import annotations

import sys
import time
from statistics import median

import numpy as np
import onnxruntime

RUNS = 30


def main(path: str, shapes: str) -> None:
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    sizes = dict(one.rsplit(":", 1) for one in shapes.split(","))
    feed = {name: np.zeros([int(size) for size in shape.split("x")], np.float32) for name, shape in sizes.items()}
    times = []
    for _ in range(RUNS):
        start = time.process_time()
        session.run(None, feed)
        times.append(1000 * (time.process_time() - start))
    print(f"{median(times):.4f} ms")


if __name__ == "__main__":
    main(*sys.argv[1:])
