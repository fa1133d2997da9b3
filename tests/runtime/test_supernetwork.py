"""The super-network as an object and on disk: files are whole or not there, errors say what is wrong and allowed."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bnas.passes import BnasError, CaptureError, Elasticity, ElasticityError, Subnet, SubnetError
from bnas.passes.assembly.importance import importance
from bnas.runtime.errors import CheckpointError
from bnas.runtime.storage.archive import SEAL, sealed
from bnas.runtime.storage.checkpoint import SUPERNET
from bnas.runtime.supernetwork import SuperNetwork
from bnas.testing import (
    Branches,
    Head,
    Layer,
    Network,
    Residual,
    assert_extracted_is_oracle,
    assert_maximal_is_original,
    assert_onnx_is_extracted,
    assert_program_is_extracted,
)

ELASTICITY = Elasticity(width_multipliers=(1.0, 0.5), min_width=2, divisor=2, max_num_widths=2)


def network(seed: int = 0, width: int = 8, gate: int | None = None) -> Network:
    stages = (
        Residual(8, norm=True, gate=gate, scale=gate is None),
        Branches((Layer(width),), keep=True),
        Layer(6, norm=True),
    )
    return Network(Layer(8, 3, norm=True), stages, Head(hidden=8), seed=seed)


def supernet_of(one: Network) -> SuperNetwork:
    return SuperNetwork.from_model(one.module, one.example_inputs, ELASTICITY)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(found: nn.Module, expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(dict(found.state_dict()), expected, rtol=0, atol=0)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    supernet_of(network()).save(tmp_path / "saved")
    return tmp_path / "saved"


# round trip


def test_what_is_saved_is_loaded_bit_for_bit(saved: Path) -> None:
    original, other = supernet_of(network()), network(seed=1)
    with pytest.raises(AssertionError, match="not equal"):
        assert_same_state(other.module, state_of(original.model))
    loaded = SuperNetwork.load(saved, other.module)
    assert_same_state(other.module, state_of(original.model))
    assert loaded.model is other.module
    assert (loaded.space, loaded.elasticity) == (original.space, original.elasticity)
    inputs = network().example_inputs
    found, expected = (one.extract(one.space.minimal())(inputs) for one in (loaded, original))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_folder_holds_one_save(saved: Path) -> None:
    changed = supernet_of(network(seed=2))
    for _ in range(2):
        changed.save(saved)
        assert len(list(saved.iterdir())) == 2
    loaded = SuperNetwork.load(str(saved), network().module)
    assert_same_state(loaded.model, state_of(changed.model))


class Ties(nn.Module):
    """A tied parameter, a buffer that is not saved, a scalar one, and weights in another memory format."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.register_buffer("unsaved", torch.rand(1), persistent=False)
        self.conv.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).mean((2, 3)) * self.unsaved
        return self.second(self.first(x).relu())


def test_parameters_that_share_memory_are_saved(tmp_path: Path) -> None:
    def made() -> nn.Module:
        net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
        net[3].weight = nn.Parameter(net[2].weight.data)
        return net.eval()

    first, second = made(), made()
    SuperNetwork.from_model(first, torch.randn(2, 6)).save(tmp_path)
    SuperNetwork.load(tmp_path, second)
    assert_same_state(second, state_of(first))
    assert second[3].weight.data_ptr() == second[2].weight.data_ptr()


def test_ties_and_memory_formats_survive(tmp_path: Path) -> None:
    first, second, inputs = Ties().eval(), Ties().eval(), torch.randn(2, 3, 4, 4)
    SuperNetwork.from_model(first, inputs).save(tmp_path)
    unsaved = second.unsaved.clone()
    SuperNetwork.load(tmp_path, second)
    assert_same_state(second, state_of(first))
    assert second.second.weight is second.first.weight
    assert torch.equal(second.unsaved, unsaved)
    assert second.conv.weight.is_contiguous(memory_format=torch.channels_last)


# what can be wrong with files


def damaged_weights(folder: Path) -> None:
    (path,) = folder.glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def cut_weights(folder: Path) -> None:
    (path,) = folder.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-100])


def missing_weights(folder: Path) -> None:
    next(folder.glob("*.safetensors")).unlink()


def missing_manifest(folder: Path) -> None:
    (folder / SUPERNET.manifest).unlink()


def cut_manifest(folder: Path) -> None:
    path = folder / SUPERNET.manifest
    path.write_bytes(path.read_bytes()[:50])


def not_text(folder: Path) -> None:
    (folder / SUPERNET.manifest).write_bytes(b"\xff\xfe{}")


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / SUPERNET.manifest
    manifest = json.loads(path.read_text())
    del manifest[SEAL]
    change(manifest)
    path.write_text(json.dumps(sealed(manifest)))


def later_format(folder: Path) -> None:
    edit(folder, lambda manifest: manifest.update(format=SUPERNET.format + 1))


def no_mapping(folder: Path) -> None:
    (folder / SUPERNET.manifest).write_text("[]")


def unsealed(folder: Path) -> None:
    path = folder / SUPERNET.manifest
    path.write_text(path.read_text().replace('"widths"', '"width"', 1))


def incomplete(folder: Path) -> None:
    edit(folder, lambda manifest: manifest.pop("elasticity"))


def other_space(folder: Path) -> None:
    edit(folder, lambda manifest: manifest["space"]["widths"].popitem())


DAMAGES = [
    (damaged_weights, r"weights-\w+\.safetensors is damaged: its checksum"),
    (cut_weights, "is damaged: its checksum"),
    (missing_weights, r"safetensors is missing; supernet\.json names it"),
    (missing_manifest, r"holds no super-network: supernet\.json is missing"),
    (cut_manifest, r"supernet\.json is damaged"),
    (not_text, r"supernet\.json is damaged"),
    (later_format, f"an unknown format; this version of bnas reads format {SUPERNET.format}"),
    (no_mapping, f"an unknown format; this version of bnas reads format {SUPERNET.format}"),
    (unsealed, r"supernet\.json is damaged or was changed: its checksum does not match"),
    (incomplete, "is damaged: 'elasticity' is missing"),
    (other_space, "search space of this model differs from the saved one"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGES)
def test_a_damaged_save_is_refused_and_the_model_unchanged(
    saved: Path, damage: Callable[[Path], None], reason: str
) -> None:
    damage(saved)
    model = network(seed=1).module
    before = state_of(model)
    with pytest.raises(CheckpointError, match=reason):
        SuperNetwork.load(saved, model)
    assert_same_state(model, before)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        pytest.param(
            network(width=12),
            r"of another shape: 0\.2\.branches\.0\.0\.weight \(8, 8, 1, 1\) instead of \(12, 8, 1, 1\)",
            id="widths",
        ),
        pytest.param(
            network(gate=4),
            r"missing: 0\.1\.gate\.excite\.bias, .*; unexpected: 0\.1\.scale; give the model",
            id="layers",
        ),
    ],
)
def test_another_architecture_is_refused_by_name_and_unchanged(saved: Path, other: Network, reason: str) -> None:
    before = state_of(other.module)
    with pytest.raises(CheckpointError, match=reason):
        SuperNetwork.load(saved, other.module)
    assert_same_state(other.module, before)


@pytest.mark.parametrize("at", [0, 1])
def test_an_interrupted_save_leaves_the_one_before(saved: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """The weights are replaced first, the manifest second; both may fail."""
    replace, calls = Path.replace, list[Path]()

    def interrupted(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) > at:
            raise OSError("no space left")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(OSError, match="no space left"):
        supernet_of(network(seed=2)).save(saved)
    monkeypatch.undo()
    assert len(calls) == at + 1
    assert not list(saved.glob(".*"))
    loaded = SuperNetwork.load(saved, network(seed=1).module)
    assert_same_state(loaded.model, state_of(network().module))


# sub-networks and settings that do not fit


@pytest.mark.parametrize(
    ("subnet", "reason"),
    [
        (Subnet({"0.0.0": 5}), r"0\.0\.0: width 5 is not one of \(4, 8\)"),
        (Subnet({"stem": 4}), r"no elastic width 'stem'; there are 0\.0\.0"),
        (Subnet({}, frozenset({"0.9"})), r"'0\.9' is not a skippable block; there are 0\.1"),
        (Subnet({}, frozenset(), {"0.0.0": 3}), r"no elastic kernel '0\.0\.0'"),
    ],
)
@pytest.mark.parametrize("method", ["program", "extract", "costs"])
def test_a_foreign_subnet_is_refused(subnet: Subnet, reason: str, method: str) -> None:
    with pytest.raises(SubnetError, match=reason) as caught:
        getattr(supernet_of(network()), method)(subnet)
    assert isinstance(caught.value, BnasError)
    assert isinstance(caught.value, ValueError)


def test_widths_that_are_not_named_are_full() -> None:
    supernet, inputs = supernet_of(network()), network().example_inputs
    torch.testing.assert_close(supernet.program(Subnet())(inputs), supernet(inputs), rtol=0, atol=0)
    assert supernet.costs(Subnet()) == supernet.costs(supernet.space.maximal())


def test_settings_come_as_a_mapping_too() -> None:
    one = network()
    settings = {"dimensions": ["width"], "width_multipliers": [1.0, 0.5], "min_width": 2, "divisor": 2}
    supernet = SuperNetwork.from_model(one.module, one.example_inputs, settings)
    assert supernet.elasticity == Elasticity(("width",), (1.0, 0.5), 2, 2)
    assert supernet.space.blocks == ()
    assert SuperNetwork.from_model(one.module, one.example_inputs).elasticity == Elasticity()
    with pytest.raises(ElasticityError, match="width is not a setting of Elasticity; did you mean 'widths'"):
        SuperNetwork.from_model(one.module, one.example_inputs, {"width": [1.0]})


def test_the_importance_has_a_name() -> None:
    with pytest.raises(ValueError, match="importance 'L3' is not one of L1, L2"):
        supernet_of(network()).reorder("L3")
    norms = [importance(supernet_of(network()).skeleton, norm) for norm in ("L1", "L2")]
    assert any(not np.allclose(a, b) for a, b in zip(norms[0].values(), norms[1].values(), strict=True))


# inputs


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scale, self.last = nn.Conv2d(3, 8, 1), nn.Linear(4, 8), nn.Conv2d(8, 2, 1)

    def forward(self, image: Tensor, code: Tensor | None = None, *, double: bool = False) -> Tensor:
        x = self.conv(image)
        if code is not None:
            x = x * self.scale(code)[:, :, None, None]
        return self.last(x * 2 if double else x)


IMAGE, CODE = torch.randn(2, 3, 4, 4), torch.randn(2, 4)


@pytest.mark.parametrize(
    "inputs",
    [
        pytest.param(IMAGE, id="tensor"),
        pytest.param((IMAGE,), id="tuple-of-one"),
        pytest.param((IMAGE, CODE), id="tuple"),
        pytest.param([IMAGE, CODE], id="list"),
        pytest.param({"image": IMAGE, "code": CODE}, id="dict"),
        pytest.param({"code": CODE, "image": IMAGE}, id="dict-in-another-order"),
        pytest.param((IMAGE, None), id="none-is-a-constant"),
        pytest.param({"image": IMAGE, "double": True}, id="flag-is-a-constant"),
    ],
)
def test_inputs_of_all_forms(tmp_path: Path, inputs: Any) -> None:
    model = TwoInputs().eval()
    supernet = SuperNetwork.from_model(model, inputs, ELASTICITY)
    assert supernet.space.widths
    assert all(isinstance(tensor, Tensor) for tensor in supernet.example())
    assert_maximal_is_original(supernet, inputs)
    for subnet in (supernet.space.minimal(), supernet.space.maximal()):
        assert_program_is_extracted(supernet, subnet, inputs)
        assert_extracted_is_oracle(supernet, subnet, inputs)
        assert_onnx_is_extracted(supernet, subnet, inputs)
    supernet.save(tmp_path)
    loaded = SuperNetwork.load(tmp_path, TwoInputs().eval())
    assert [t.shape for t in loaded.example()] == [t.shape for t in supernet.example()]
    assert_maximal_is_original(loaded, inputs)


def test_other_values_of_other_inputs_are_seen() -> None:
    inputs = {"image": IMAGE, "double": True}
    supernet = SuperNetwork.from_model(TwoInputs().eval(), inputs, ELASTICITY)
    with pytest.raises(AssertionError, match="not equal"):
        assert_maximal_is_original(supernet, {"image": IMAGE, "double": False})


def test_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(
        CaptureError,
        match=r"cannot capture the model \(TwoInputs\), .*: x = self\.conv\(image\): RuntimeError: Invalid channel dim",
    ):
        SuperNetwork.from_model(TwoInputs().eval(), torch.randn(2, 5, 4, 4))
    with pytest.raises(CaptureError, match=r"cannot capture the model.*unexpected keyword argument 'picture'"):
        SuperNetwork.from_model(TwoInputs().eval(), {"picture": IMAGE})


# the module itself


def test_as_a_module_it_is_the_model() -> None:
    one = network()
    supernet = supernet_of(one)
    torch.testing.assert_close(supernet(one.example_inputs), one.module(one.example_inputs), rtol=0, atol=0)
    pairs = zip(supernet.parameters(), one.module.parameters(), strict=True)
    assert all(own is shared for own, shared in pairs)
    assert supernet.train().model.training
    assert supernet.program(Subnet()).training
    assert not supernet.extract(Subnet()).training
    assert not any(module.training for module in supernet.extract(Subnet()).modules())


def test_diagnostics_name_places_and_reasons() -> None:
    supernet = supernet_of(Network(Layer(8, 3), (Residual(8), Layer(8), Residual(8))))
    told = [str(one) for one in supernet.diagnostics]
    assert any(line == "1.1.weight: the output of the model fixes it" for line in told)
    assert all(one.place and one.reason for one in supernet.diagnostics)


def test_a_deep_copy_of_a_deep_network_has_tensors_of_its_own() -> None:
    """A copy along the links of the graph would exceed the recursion limit."""
    model = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(300))).eval()
    inputs = torch.randn(1, 4, 4, 4)
    whole = SuperNetwork.from_model(model, inputs)
    smallest = whole.space.minimal()
    before = whole.program(smallest)(inputs)
    twin = copy.deepcopy(whole)
    torch.testing.assert_close(twin.program(smallest)(inputs), before, rtol=0, atol=0)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    torch.testing.assert_close(whole.program(smallest)(inputs), before, rtol=0, atol=0)
    assert not twin.program(smallest)(inputs).any()


def test_a_pickled_super_network_is_the_same_one_on_tensors_of_its_own() -> None:
    one = network()
    batch, whole = one.example_inputs, supernet_of(one)
    subnet = whole.space.minimal()
    costs, before = whole.costs(subnet), whole.program(subnet)(batch)  # both keep what cannot be pickled
    twin = pickle.loads(pickle.dumps(whole))
    assert (twin.space, twin.costs(subnet)) == (whole.space, costs)
    assert torch.equal(twin.program(subnet)(batch), before)
    twin.program(subnet)(batch).sum().backward()
    assert any(one.grad is not None for one in twin.parameters())
    assert all(one.grad is None for one in whole.parameters())


def test_a_model_on_the_cpu_leaves_the_random_states_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 2))
    before = torch.get_rng_state()
    SuperNetwork.from_model(net, torch.ones(2, 4))
    assert seeded == []
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(0)
    assert seeded == [0]  # what would be seen
