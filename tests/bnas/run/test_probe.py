"""What the parts of a run take, measured on a small job: positive, of the right size, and without a trace."""

from __future__ import annotations

import time

import pytest
import torch
from job_cases import Shuffled, job

from bnas.run.plan.probe import Probe, Times, samples_in
from bnas.runtime import FineTune, SuperNetwork
from bnas.runtime.train import random_state


@pytest.fixture
def probe() -> Probe:
    given = job(budget=100.0)
    return Probe(given, SuperNetwork.from_model(given.model, given.example_inputs, given.elasticity))


def test_what_is_timed_leaves_no_trace(probe: Probe) -> None:
    before = {name: one.clone() for name, one in probe.supernet.model.state_dict().items()}
    loader = probe.job.data.train
    state = random_state.capture(loader)
    subnets = [probe.supernet.space.minimal(), probe.stand_in()]
    assert probe.train_step() > 0
    assert min(probe.tune_step(FineTune(1), subnets)) > 0
    fixed, sample = probe.evaluation()
    assert fixed > 0
    assert sample > 0
    assert random_state.capture(loader) == state
    after = probe.supernet.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_prediction_is_of_the_size_of_what_comes(probe: Probe) -> None:
    """Not by much less or more than an order: other processes may be at work."""
    predicted = probe.train_step()
    start = time.perf_counter()
    predicted = min(predicted, probe.train_step())
    whole = time.perf_counter() - start
    assert predicted < whole


def test_what_stands_in_for_winners_has_half_of_the_work(probe: Probe) -> None:
    costs = {one: probe.supernet.costs(one)["macs"] for one in (probe.stand_in(), probe.supernet.space.maximal())}
    half, full = costs.values()
    assert 0.3 < half / full < 0.8


def test_more_winners_and_samples_take_longer_to_deliver(probe: Probe) -> None:
    slow, quick = Times(sample=0.01, delivered=0.02), Times(sample=0.001, delivered=0.002)
    assert probe.delivery(3, slow) > probe.delivery(2, slow) > probe.delivery(2, quick)


def test_where_evaluations_are_on_another_device_a_run_of_the_files_is_measured(
    probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They tell nothing of ONNX Runtime on the CPU: a plan for a GPU would forget most of the time at the end."""
    assert probe.times(None).delivered < 1.0
    monkeypatch.setattr("bnas.run.plan.probe.device_of", lambda _: torch.device("meta"))
    monkeypatch.setattr(Probe, "latency", lambda *_: (0.0, 3.0))
    times = probe.times(None)
    assert times.delivered == 3.0
    assert times.run == 0.0, "no search measures latencies"
    assert probe.delivery(2, times) > 3 * 3.0 * probe.job.latency.runs


def test_samples_are_counted_without_drawing_them() -> None:
    assert samples_in(Shuffled(0)) == 48
    data = torch.utils.data.TensorDataset(torch.zeros(7, 1))
    assert samples_in(torch.utils.data.DataLoader(data, batch_size=2)) == 7
