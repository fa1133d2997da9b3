"""Reordering keeps the maximal sub-network, by every measure; what is most important by it comes first."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from network_cases import ELASTICITY, EXACT, Case, cases, everything
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.parametrizations import spectral_norm

from bnas.passes import BnasError, ElasticityError
from bnas.passes.assembly.importance import MEASURES, importance, read_scores
from bnas.passes.assembly.reordering import fixed_order, reorder
from bnas.passes.space.elasticity import Elasticity
from bnas.runtime import SuperNetwork
from bnas.testing import assert_extracted_is_oracle, assert_program_is_extracted


def random_scores(supernet: SuperNetwork, seed: int = 0) -> dict[str, Tensor]:
    """A score for each entry of each weight that makes channels."""
    generator = torch.Generator().manual_seed(seed)
    names = supernet.skeleton.types.producers
    return {name: torch.randn(supernet.ir.tensor(name).shape, generator=generator) for name in names}


def assert_reordered(supernet: SuperNetwork, inputs: Tensor, measure: str, scores: dict[str, Tensor] | None) -> None:
    """The maximal sub-network's outputs stay, and importance descends."""
    program = supernet.program(supernet.space.maximal())
    before = program(inputs)
    weights = {name: tensor.clone() for name, tensor in supernet.model.state_dict().items()}
    order = reorder(supernet.skeleton, measure, scores)
    torch.testing.assert_close(program(inputs), before, rtol=EXACT, atol=EXACT)
    if scores is None:
        kept, found = fixed_order(supernet.skeleton), importance(supernet.skeleton, measure)
        assert all((np.diff(one) <= EXACT).all() for symbol, one in found.items() if symbol not in kept)
    if all((entries == np.arange(len(entries))).all() for entries in order.values()):
        torch.testing.assert_close(supernet.model.state_dict(), weights, rtol=0, atol=0)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class LowRank(nn.Module):
    """A layer whose weight is its own plus a product of two small ones."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.rows, self.columns = nn.Parameter(torch.rand(layer.out_features, 2)), nn.Parameter(torch.rand(2, 8))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.layer.weight + self.rows @ self.columns, self.layer.bias)


def pruned(layer: nn.Linear) -> nn.Module:
    return prune.l1_unstructured(layer, "weight", 0.3)  # type: ignore[no-any-return]


def doubled(layer: nn.Linear) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Doubled())


COMPUTED = {
    "pruned": (pruned, ["0.weight_orig"]),
    "parametrized": (doubled, ["0.parametrizations.weight.original"]),
    "spectral": (spectral_norm, ["0.parametrizations.weight.original"]),
    "low-rank": (LowRank, ["0.rows", "0.layer.weight"]),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_a_weight_that_forward_computes_is_measured_by_its_parameters(name: str) -> None:
    change, makers = COMPUTED[name]
    net = nn.Sequential(change(nn.Linear(8, 16)), nn.ReLU(), nn.Linear(16, 2)).double().eval()
    inputs = torch.randn(4, 8, dtype=torch.float64)
    supernet = SuperNetwork.from_model(net, inputs, ELASTICITY)
    assert [one for one in supernet.skeleton.types.producers if one.startswith("0.")] == makers
    assert any(found.std() > 0 for found in importance(supernet.skeleton, "L1").values())
    assert_reordered(supernet, inputs, "L1", None)
    assert_extracted_is_oracle(supernet, supernet.space.minimal(), inputs)
    ignoring = SuperNetwork.from_model(net, inputs, replace(ELASTICITY, ignored_scopes=("0",)))
    assert not [width for width in ignoring.space.widths if width.startswith("0") and "#" not in width]
    assert supernet.space.widths.keys() - ignoring.space.widths.keys()


class Hyper(nn.Module):
    """Computes the weight of a layer from the input: no parameter holds its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.maker, self.last = nn.Linear(8, 16 * 8), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.linear(x, self.maker(x.mean(0)).view(16, 8)).relu())


def test_a_weight_that_is_computed_from_the_input_is_none_of_a_parameter() -> None:
    supernet = SuperNetwork.from_model(Hyper().eval(), torch.randn(4, 8), ELASTICITY)
    assert list(supernet.skeleton.types.producers) == ["maker.weight", "last.weight"]


@given(case=cases(torch.float64), measure=st.sampled_from([*MEASURES, "external"]), seed=st.integers(0, 2**16))
def test_the_maximal_stays_by_every_measure(case: Case, measure: str, seed: int) -> None:
    scores = random_scores(case.supernet, seed) if measure == "external" else None
    assert_reordered(case.supernet, case.inputs, measure, scores)
    assert_program_is_extracted(case.supernet, case.subnet, case.inputs, tolerance=EXACT)
    assert_extracted_is_oracle(case.supernet, case.subnet, case.inputs)


class Heads(nn.Module):
    """Heads times head size with a gain for each head, then groups times channels."""

    def __init__(self) -> None:
        super().__init__()
        self.values, self.gain = nn.Linear(3, 24), nn.Parameter(torch.rand(6, 1) + 0.5)
        self.grouped, self.last = nn.Conv1d(24, 24, 1, groups=6), nn.Conv1d(24, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.values(x).reshape(x.shape[0], x.shape[1], 6, 4) * self.gain
        x = heads.reshape(x.shape[0], x.shape[1], 24).transpose(1, 2)
        return self.last(torch.relu(self.grouped(x)))


@pytest.mark.parametrize("measure", [*MEASURES, "external"])
@pytest.mark.parametrize("inner", [False, True])
def test_heads_and_groups_are_reordered_whole(measure: str, inner: bool) -> None:
    inputs = torch.randn(2, 5, 3, dtype=torch.float64)
    settings = {"min_width": 1, "divisor": 1, "widths": {"*:inner": [2]} if inner else {}}
    supernet = SuperNetwork.from_model(Heads().double().eval(), inputs, settings)
    before = supernet.model.values.weight.detach().clone().reshape(6, 4, 3)
    scores = random_scores(supernet) if measure == "external" else None
    assert_reordered(supernet, inputs, measure, scores)
    after = supernet.model.values.weight.detach().reshape(6, 4, 3)
    order = [int((before.sum((1, 2)) - head.sum()).abs().argmin()) for head in after]
    assert sorted(order) == list(range(6)) != order
    if not inner:
        assert torch.equal(after, before[order])
    assert_extracted_is_oracle(supernet, supernet.space.minimal(), inputs)


def test_heads_that_are_torn_apart_are_seen() -> None:
    inputs = torch.randn(2, 5, 3, dtype=torch.float64)
    supernet = SuperNetwork.from_model(Heads().double().eval(), inputs, {"min_width": 1, "divisor": 1})
    del supernet.skeleton.types.tensors["gain"]
    with pytest.raises(AssertionError, match="not close"):
        assert_reordered(supernet, inputs, "L2", None)


def test_measures_by_hand() -> None:
    rows = torch.tensor([[3.0, 4.0], [5.0, 0.0], [-6.0, 0.0]])
    assert MEASURES["L1"](rows).tolist() == [7, 5, 6]
    assert MEASURES["L2"](rows).tolist() == [5, 5, 6]
    distances = [[sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) ** 0.5 for y in rows] for x in rows]
    torch.testing.assert_close(MEASURES["geometric_median"](rows), torch.tensor([sum(one) for one in distances]))


# tensors that no checkpoint has


class Gains(nn.Module):
    """Two gains for each channel: a parameter, and a buffer that the state dict has or not."""

    def __init__(self, persistent: bool = False, even: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.own = nn.Parameter(torch.rand(8))
        self.register_buffer("gain", torch.ones(8) if even else torch.rand(8) + 0.5, persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x)) * self.own
        return self.last(torch.relu(self.second(x)) * self.gain)


@pytest.mark.parametrize(
    ("settings", "sorted_widths"),
    [({}, {"first"}), ({"persistent": True}, {"first", "second"}), ({"even": True}, {"first", "second"})],
)
def test_what_was_reordered_and_saved_fits_a_model_that_is_made_anew(
    tmp_path: Path, settings: dict[str, bool], sorted_widths: set[str]
) -> None:
    torch.manual_seed(0)
    model, inputs = Gains(**settings).double().eval(), torch.randn(4, 3, dtype=torch.float64)
    anew, expected = copy.deepcopy(model), model(inputs)
    supernet = SuperNetwork.from_model(model, inputs, {"min_width": 1, "divisor": 1})
    order = reorder(supernet.skeleton, "L1")
    moved = {symbol for symbol, entries in order.items() if (entries != np.arange(len(entries))).any()}
    names = {name for name, symbol in supernet.skeleton.choices.symbols.items() if symbol in moved}
    assert names == sorted_widths
    supernet.save(tmp_path)
    loaded = SuperNetwork.load(tmp_path, anew).eval()
    torch.testing.assert_close(loaded.program(loaded.space.maximal())(inputs), expected, rtol=EXACT, atol=EXACT)
    assert_extracted_is_oracle(loaded, loaded.space.minimal(), inputs)


class InOneMemory(nn.Module):
    """Two layers whose weights are different parameters of one tensor, or of overlapping parts of it."""

    def __init__(self, start: int) -> None:
        super().__init__()
        self.first, self.middle, self.second, self.last = (
            nn.Linear(*sizes) for sizes in ((8, 16), (16, 8), (8, 16), (16, 4))
        )
        rows = torch.randn(16 + start, 8)
        self.first.weight, self.second.weight = nn.Parameter(rows[:16]), nn.Parameter(rows[start:])

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(torch.relu(self.first(x)))
        return self.last(torch.relu(self.second(x)))


@pytest.mark.parametrize(("start", "sorted_widths"), [(0, set()), (5, set()), (16, {"first", "middle", "second"})])
def test_tensors_that_share_memory_are_not_permuted_twice(start: int, sorted_widths: set[str]) -> None:
    torch.manual_seed(0)
    model, inputs = InOneMemory(start).eval(), torch.randn(4, 8)
    expected, names = model(inputs).detach(), set[str]()
    supernet = SuperNetwork.from_model(model, inputs, {"min_width": 1, "divisor": 1})
    for symbol, entries in reorder(supernet.skeleton, "L1").items():
        if (entries != np.arange(len(entries))).any():
            names |= {name for name, one in supernet.skeleton.choices.symbols.items() if one == symbol}
    torch.testing.assert_close(supernet.program(supernet.space.maximal())(inputs), expected)
    assert names == sorted_widths


# scores from elsewhere


def small(settings: Mapping[str, object] | None = None) -> SuperNetwork:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)).eval()
    fine = {"min_width": 1, "divisor": 1, **(settings or {})}
    return SuperNetwork.from_model(model, torch.randn(2, 3, 4, 4), fine)


SCORES = [0.5, 3.0, -1.0, 2.0]


@pytest.mark.parametrize("name", ["0.weight", "0", "Sequential/NNCFConv2d[0]/conv2d_0"])
@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
@pytest.mark.parametrize("whole", [False, True])
def test_scores_of_a_file(tmp_path: Path, name: str, suffix: str, whole: bool) -> None:
    path, scores = tmp_path / f"scores{suffix}", torch.tensor(SCORES)
    scores = (scores[:, None, None, None] / 3).expand(4, 3, 1, 1).contiguous() if whole else scores
    if suffix == ".json":
        path.write_text(json.dumps({name: scores.tolist()}))
    else:
        safetensors.torch.save_file({name: scores}, path)
    supernet = small({"filter_importance": "external", "external_importance_path": str(path)})
    before = supernet.model[0].weight.detach().clone()
    supernet.reorder()
    assert torch.equal(supernet.model[0].weight, before[[1, 3, 0, 2]])


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ({"1": torch.ones(2)}, "scores are missing for 0.weight, which produces an elastic width"),
        ({"0": torch.ones(3)}, r"0.weight has scores of shape \(3,\); allowed are \(4, 3, 1, 1\) and \(4,\)"),
        ({"00": torch.ones(4)}, "'00' matches no parameter; the nearest are"),
    ],
)
def test_scores_that_do_not_fit_are_refused(scores: dict[str, Tensor], reason: str) -> None:
    with pytest.raises(ElasticityError, match=reason):
        small().reorder("external", scores)


def test_scores_and_the_external_measure_need_each_other() -> None:
    for measure, scores in (("external", None), ("L2", {"0": torch.ones(4)})):
        with pytest.raises(ElasticityError, match="scores need the importance 'external'"):
            small().reorder(measure, scores)


@pytest.mark.parametrize("content", [b"no scores", b"[1, 2]", b'{"0": "many"}', b'{"0": [[1], [1, 2]]}'])
@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_file_of_another_format_is_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"scores{suffix}"
    with pytest.raises(ElasticityError, match="there is no file"):
        read_scores(path)
    path.write_bytes(content)
    with pytest.raises(BnasError, match="is neither safetensors nor JSON"):
        read_scores(path)


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "scores.pt"
    torch.save({"0": torch.ones(4)}, path)
    with pytest.raises(ElasticityError, match=r"neither safetensors nor JSON.*save_file"):
        read_scores(path)


def test_the_settings_say_the_measure() -> None:
    found = [small({"filter_importance": name}) for name in ("L1", "L2", "geometric mean")]
    for supernet, measure in zip(found, MEASURES, strict=True):
        twin = small()
        supernet.reorder()
        twin.reorder(measure)
        torch.testing.assert_close(supernet.model.state_dict(), twin.model.state_dict(), rtol=0, atol=0)
    assert Elasticity().filter_importance == "L2" == ELASTICITY.filter_importance


def test_measures_differ() -> None:
    case = everything()
    found = [importance(case.supernet.skeleton, measure) for measure in MEASURES]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        orders = [[tuple(np.argsort(-s)) for s in found[n].values()] for n in (one, other)]
        assert orders[0] != orders[1]
