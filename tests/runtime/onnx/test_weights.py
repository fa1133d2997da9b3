"""An ONNX model of a stranger reads no file outside of its folder, wherever in it the file is named."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from bnas.runtime import LatencyError, SessionError, evaluate_onnx, measure_latency
from bnas.runtime.onnx.file import model_bytes
from bnas.runtime.onnx.session import open_session
from bnas.runtime.onnx.weights import ExternalDataError, weight_files

WEIGHTS = np.arange(4, dtype=np.float32)
FLOAT = TensorProto.FLOAT


def outside(place: str) -> TensorProto:
    """A tensor whose content is in a file."""
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=place)
    tensor.external_data.add(key="length", value="16")
    return tensor


def added(tensor: TensorProto, name: str = "w") -> GraphProto:
    """``y = x + w``, with an initializer."""
    x, y = (helper.make_tensor_value_info(one, FLOAT, [4]) for one in "xy")
    node = helper.make_node("Add", ["x", name], ["y"])
    return helper.make_graph([node], "g", [x], [y], [tensor])


def model_of(graph: GraphProto, **more: object) -> ModelProto:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], **more)
    model.ir_version = 8
    return model


def initializer(place: str) -> ModelProto:
    return model_of(added(outside(place)))


def constant(place: str) -> ModelProto:
    graph = added(numpy_helper.from_array(WEIGHTS, "other"))
    graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=outside(place)))
    return model_of(graph)


def subgraph(place: str) -> ModelProto:
    """In both branches of an If, the second one in a second If."""
    y = helper.make_tensor_value_info("b", FLOAT, [4])
    inner = helper.make_graph([helper.make_node("Add", ["x", "w"], ["b"])], "inner", [], [y], [outside(place)])
    plain = helper.make_graph([helper.make_node("Neg", ["x"], ["b"])], "plain", [], [y])
    nested = helper.make_node("If", ["c"], ["b"], then_branch=plain, else_branch=inner)
    around = helper.make_graph([nested], "around", [], [y])
    graph = added(helper.make_tensor("c", TensorProto.BOOL, [], [True]))
    del graph.node[:]
    graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=plain, else_branch=around))
    return model_of(graph)


def sparse(place: str, part: str = "values") -> ModelProto:
    graph = added(numpy_helper.from_array(WEIGHTS, "other"))
    values, indices = outside(place), numpy_helper.from_array(np.arange(4), "w_indices")
    if part == "indices":
        values, indices = numpy_helper.from_array(WEIGHTS, "w"), outside(place)
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    return model_of(graph)


def sparse_indices(place: str) -> ModelProto:
    return sparse(place, "indices")


def function(place: str) -> ModelProto:
    nodes = [helper.make_node("Constant", [], ["w"], value=outside(place)), helper.make_node("Add", ["x", "w"], ["y"])]
    known = helper.make_function("own", "F", ["x"], ["y"], nodes, [helper.make_opsetid("", 17)])
    graph = added(numpy_helper.from_array(WEIGHTS, "other"))
    del graph.node[:]
    graph.node.append(helper.make_node("F", ["x"], ["y"], domain="own"))
    model = model_of(graph, functions=[known])
    model.opset_import.append(helper.make_opsetid("own", 1))
    return model


def training(place: str) -> ModelProto:
    model = model_of(added(numpy_helper.from_array(WEIGHTS, "w")))
    model.training_info.add().initialization.CopyFrom(added(outside(place)))
    return model


def listed(place: str) -> ModelProto:
    """In a list of tensors of an attribute."""
    model = model_of(added(numpy_helper.from_array(WEIGHTS, "w")))
    attribute = model.graph.node[0].attribute.add(name="kept", type=onnx.AttributeProto.TENSORS)
    attribute.tensors.append(outside(place))
    return model


def graphs(place: str) -> ModelProto:
    """In a list of graphs of an attribute."""
    model = model_of(added(numpy_helper.from_array(WEIGHTS, "w")))
    attribute = model.graph.node[0].attribute.add(name="kept", type=onnx.AttributeProto.GRAPHS)
    attribute.graphs.append(added(outside(place)))
    return model


KINDS = [initializer, constant, subgraph, sparse, sparse_indices, function, training, listed, graphs]
Made = Callable[[str], ModelProto]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of a model; what is of worth lies beside the folder."""
    (tmp_path / "secret.bin").write_bytes(WEIGHTS.tobytes())
    inner = tmp_path / "model"
    (inner / "below").mkdir(parents=True)
    for name in ("w.data", "below/w.data"):
        (inner / name).write_bytes(WEIGHTS.tobytes())
    (inner / "link.data").symlink_to(tmp_path / "secret.bin")
    (inner / "up").symlink_to(tmp_path)
    (inner / "circle").symlink_to(inner / "circle")
    (inner / "near.data").symlink_to("w.data")
    os.mkfifo(inner / "pipe")
    return inner


def saved(folder: Path, model: ModelProto) -> Path:
    path = folder / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return path


ATTACKS = [
    ("../secret.bin", "which is outside"),
    ("below/../../secret.bin", "which is outside"),
    ("/dev/zero", "which is outside"),
    ("", "which is outside"),
    (".", "which is outside"),
    ("..\\secret.bin", "which is outside"),
    ("C:\\secret.bin", "which is outside"),
    ("a\0b", "which is outside"),
    ("*/_ORT_MEM_ADDR_/*", "which is outside"),
    ("link.data", "a link to a place outside"),
    ("up/secret.bin", "a link to a place outside"),
    ("pipe", "not a regular file"),
    ("below", "not a regular file"),
    ("circle", "cannot be read"),
    ("none.data", "missing"),
    ("x" * 5000, "cannot be read"),
]


@pytest.mark.parametrize("made", KINDS, ids=lambda made: made.__name__)
@pytest.mark.parametrize(("place", "told"), ATTACKS, ids=lambda one: repr(one)[:24])
def test_weights_elsewhere_are_refused(made: Made, place: str, told: str, folder: Path) -> None:
    path = saved(folder, made(place))
    for asked in (weight_files, model_bytes):
        with pytest.raises(ExternalDataError, match=told):
            asked(path)
    with pytest.raises(SessionError, match=rf"ONNX Runtime cannot load it: .*net\.onnx: tensor '.*{told}"):
        open_session(path)


@pytest.mark.parametrize("made", KINDS, ids=lambda made: made.__name__)
@pytest.mark.parametrize("place", ["w.data", "below/w.data", "./w.data", "near.data"])
def test_weights_in_the_folder_are_found(made: Made, place: str, folder: Path) -> None:
    path = saved(folder, made(place))
    assert weight_files(path) == [folder / place]
    assert model_bytes(path) == path.stat().st_size + 16


def test_weights_in_the_folder_are_read(folder: Path) -> None:
    for made in (initializer, constant):
        session = open_session(saved(folder, made("below/w.data")))
        (found,) = session.run(None, {"x": np.ones(4, np.float32)})
        assert found.tolist() == [1, 2, 3, 4]


def test_commands_that_measure_refuse_them_too(folder: Path) -> None:
    path = saved(folder, initializer("../secret.bin"))
    with pytest.raises(LatencyError, match="outside the model's folder"):
        measure_latency(path, runs=1)
    with pytest.raises(SessionError, match="outside the model's folder"):
        evaluate_onnx(path, [])


def test_a_second_place_of_one_tensor_is_looked_at(folder: Path) -> None:
    model = initializer("w.data")
    model.graph.initializer[0].external_data.add(key="location", value="../secret.bin")
    with pytest.raises(ExternalDataError, match="which is outside"):
        weight_files(saved(folder, model))


def test_a_tensor_that_is_elsewhere_and_does_not_say_where_is_refused(folder: Path) -> None:
    model = initializer("w.data")
    del model.graph.initializer[0].external_data[:]
    with pytest.raises(ExternalDataError, match="does not name the file"):
        weight_files(saved(folder, model))


@pytest.mark.parametrize("place", ["w.data", "/dev/zero"])
def test_a_model_in_memory_names_no_file(place: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one of the current folder, which is nobody's word."""
    monkeypatch.chdir(folder)
    with pytest.raises(SessionError, match="a model in memory must contain its weights"):
        open_session(initializer(place).SerializeToString())
    whole = model_of(added(numpy_helper.from_array(WEIGHTS, "w"))).SerializeToString()
    assert open_session(whole).run(None, {"x": np.ones(4, np.float32)})[0].tolist() == [1, 2, 3, 4]


def test_compiled_code_of_a_provider_is_refused(folder: Path) -> None:
    model = model_of(added(numpy_helper.from_array(WEIGHTS, "w")))
    model.graph.node.append(helper.make_node("EPContext", [], ["z"], name="blob", domain="com.microsoft"))
    with pytest.raises(SessionError, match="node 'blob' is compiled code of an execution provider"):
        open_session(saved(folder, model))


@pytest.mark.parametrize("name", ["pipe", "below", "circle", "none.onnx", "text.onnx"])
def test_what_is_no_model_is_told(name: str, folder: Path) -> None:
    (folder / "text.onnx").write_text("no model")
    with pytest.raises(SessionError, match=f"ONNX Runtime cannot load it: .*{name}"):
        open_session(folder / name)


def test_many_nodes_are_walked_quickly(folder: Path) -> None:
    import time

    graph = added(outside("../secret.bin"))
    for number in range(20_000):
        graph.node.append(helper.make_node("Neg", ["x"], [f"n{number}"], name=f"n{number}"))
    path, begun = saved(folder, model_of(graph)), time.process_time()
    with pytest.raises(ExternalDataError):
        weight_files(path)
    assert time.process_time() - begun < 5
