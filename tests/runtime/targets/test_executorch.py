"""What ExecuTorch does otherwise than other targets: its threads, and what it prints. Skipped where it is missing."""

import gc
import sys

import pytest
import torch
from conversion_cases import error, feed, network, small

from bnas.runtime.targets.executorch import ExecuTorch
from bnas.runtime.targets.target import TargetError

pytest.importorskip("executorch")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    torch.manual_seed(0)
    made = network(*small())
    return made, ExecuTorch().build(made, tmp_path_factory.mktemp("small"))


def test_another_number_of_threads_waits_until_the_loaded_networks_are_gone(built) -> None:
    net, path = built
    target, given = ExecuTorch(), feed(*net.example)
    gc.collect()
    loaded = target.load(path, given, 1)
    with pytest.raises(
        TargetError, match=r"networks with 1 threads are still loaded: release them before you ask for 2"
    ):
        target.load(path, given, 2)
    del loaded
    two = target.load(path, given, 2)
    assert error(net, target.run(two, given)[0]) < 10


def test_what_is_no_program_is_told_with_what_the_runtime_printed(tmp_path, capfd) -> None:
    path = tmp_path / "model.pte"
    path.write_bytes(b"no program" * 100)
    with pytest.raises(TargetError, match=r"cannot load .*model.pte: RuntimeError: .* \(.*identifier"):
        ExecuTorch().load(path, {}, 1)
    assert capfd.readouterr() == ("", "")


def test_without_it_the_error_says_what_to_install(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "executorch.runtime", None)
    with pytest.raises(TargetError, match=r"pip install 'bnas\[executorch\]'"):
        ExecuTorch().load(tmp_path / "model.pte", {}, 1)
