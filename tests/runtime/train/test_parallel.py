"""Two processes on this machine, against one with the doubled batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import parallel_cases
import pytest
import safetensors.torch
import torch
from parallel_cases import RECIPE, STAGES
from torch import Tensor, nn
from training_cases import batches, gradients, plain, same, supernet, tensors

from bnas.runtime import Trainer, TrainingError
from bnas.runtime.train import parallel
from bnas.runtime.train.learner import Learner, Moment


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `parallel_cases` wrote."""
    path = tmp_path_factory.mktemp("parallel")
    script = parallel_cases.__file__
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    here = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run([*torchrun, script, str(path)], capture_output=True, text=True, timeout=300, env=here)
    assert done.returncode == 0, done.stderr[-4000:]
    return path


def found(folder: Path, name: str) -> list[dict[str, Tensor]]:
    return [safetensors.torch.load_file(folder / f"{name}-{rank}.safetensors") for rank in range(2)]


def apart(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def test_gradients_are_those_of_the_doubled_batch(folder: Path) -> None:
    net = supernet(norm=False).train()
    Learner(net, plain()).accumulate([net.space.maximal(), net.space.minimal()], batches(1), Moment())
    expected = gradients(net)
    alone, averaged = found(folder, "alone"), found(folder, "averaged")
    assert all(apart(one, expected) < 1e-6 for one in averaged)
    assert all(apart(one, expected) > 1e-3 for one in alone)
    assert same(*averaged)


def test_training_ends_as_that_of_one_process_and_alike_everywhere(folder: Path) -> None:
    net = supernet(norm=False)
    Trainer(net, STAGES, RECIPE).fit(batches(3))
    ranks = found(folder, "fitted")
    assert same(*ranks)
    assert apart(ranks[0], tensors(net)) < 1e-5
    assert apart(ranks[0], tensors(supernet(norm=False))) > 1e-3


def test_interrupted_training_is_resumed_to_the_bit(folder: Path) -> None:
    ranks, whole = found(folder, "resumed"), found(folder, "fitted")
    assert same(ranks[0], whole[0])
    assert same(ranks[1], whole[1])
    manifest = json.loads((folder / "run" / "last" / "training.json").read_text())
    assert len(manifest["state"]["data"]) == 2


def test_settings_that_disagree_are_told_on_every_process(folder: Path) -> None:
    for rank in range(2):
        rate, length = json.loads((folder / f"errors-{rank}.json").read_text())
        assert rate.startswith("the settings of the training of process 1 is")
        assert "'learning_rate': 1.1" in rate
        assert "'batches': 2" in length


@pytest.mark.skipif(sys.platform != "linux", reason="threads are read from /proc")
def test_a_destroyed_group_leaves_no_thread(folder: Path) -> None:
    for rank in range(2):
        left = json.loads((folder / f"threads-{rank}.json").read_text())
        assert left
        assert not [name for name in left if "gloo" in name]


GROUP_FIRST = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist

dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
import bnas

assert "torch._dynamo.variables" not in sys.modules, "else this shows nothing"
bnas.SuperNetwork.from_model(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)), torch.zeros(2, 4))
import torch._dynamo.variables
dist.destroy_process_group()
print([one for task in Path("/proc/self/task").glob("*") if "gloo" in (one := (task / "comm").read_text())])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are read from /proc")
def test_a_group_that_was_there_before_bnas_leaves_no_thread(tmp_path: Path) -> None:
    here = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-c", GROUP_FIRST, str(tmp_path / "group")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=here)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr[-2000:]


def test_one_process_is_left_alone() -> None:
    layer = nn.Linear(2, 2)
    layer(torch.ones(1, 2)).sum().backward()
    before = layer.weight.grad.clone()
    parallel.average_gradients(layer.parameters())
    assert torch.equal(layer.weight.grad, before)
    assert (parallel.world(), parallel.rank(), parallel.from_first(3), parallel.from_all(3)) == (1, 0, 3, [3])
    assert parallel.weighted(5, [2.0], torch.device("cpu")) == (1.0, [2.0])
    parallel.agree({"a": 1}, "it")


def test_disagreement_names_process_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "from_all", lambda value: [value, value, 5])
    with pytest.raises(TrainingError, match="the rate of process 2 is 5, but 4 on process 0"):
        parallel.agree(4, "the rate")


def test_buckets_hold_all_gradients_of_a_kind_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "BUCKET", 10)
    kinds = [torch.float32, torch.float32, torch.float64, torch.float32, torch.float32]
    given = [torch.zeros(size, dtype=kind) for size, kind in zip((6, 4, 3, 25, 1), kinds, strict=True)]
    sizes = [[len(one) for one in bucket] for bucket in parallel._buckets(given)]
    assert sizes == [[6, 4], [25], [1], [3]]
