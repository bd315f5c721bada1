"""Loading: what is accepted, what is refused and how."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vaultline.core.errors import InputError
from vaultline.core.program import StageSettings
from vaultline.graph.compile import compile_segment
from vaultline.graph.engine import run_plain
from vaultline.graph.model import load_model


def tiny(
    *, op: str = "Relu", domain: str = "", shape: list | None = None, opset: int = 17
) -> onnx.ModelProto:
    shape = [1, 4] if shape is None else shape
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"], domain=domain)],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [onnx.ValueInfoProto(name="y")],
    )
    versions = {"": opset, **({domain: 1} if domain else {})}
    imports = [helper.make_opsetid(name, version) for name, version in versions.items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def cyclic() -> onnx.ModelProto:
    model = tiny()
    model.graph.node.append(helper.make_node("Add", ["x", "b"], ["a"]))
    model.graph.node.append(helper.make_node("Relu", ["a"], ["b"]))
    return model


def dangling() -> onnx.ModelProto:
    model = tiny()
    model.graph.node[0].input[0] = "nowhere"
    return model


def outputless() -> onnx.ModelProto:
    model = tiny()
    model.graph.output[0].name = "nowhere"
    return model


def data_dependent() -> onnx.ModelProto:
    return tiny(op="NonZero")


BAD = {
    "an unknown operator": (lambda: tiny(op="Frobnicate"), "does not accept"),
    "an unknown domain": (lambda: tiny(domain="com.example"), "does not accept"),
    "an opset from the future": (lambda: tiny(opset=99), "does not accept"),
    "an open side that is not the batch": (lambda: tiny(shape=[1, "width"]), "is open"),
    "a cycle": (cyclic, "not valid"),
    "a tensor that nothing makes": (dangling, "not valid"),
    "an output that nothing makes": (outputless, "nothing makes"),
    "an output whose shape depends on data": (data_dependent, "not known"),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_bad_models_are_refused_with_a_remedy(case: str, write) -> None:
    make, message = BAD[case]
    with pytest.raises(InputError, match=message) as caught:
        load_model(write(make()))
    assert caught.value.got
    assert caught.value.expected or caught.value.remedy


FILES = {
    "empty": b"",
    "text": b"not a model\n" * 40,
    "a valid message of another kind": numpy_helper.from_array(
        np.ones(3, np.float32)
    ).SerializeToString(),
    "random bytes": np.random.default_rng(0).bytes(4096),
}


@pytest.mark.parametrize("case", FILES, ids=str)
def test_files_that_are_not_onnx(case: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(FILES[case])
    with pytest.raises(InputError):
        load_model(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_model(tmp_path / "absent.onnx")


def test_a_cut_off_file(samples, write) -> None:
    path = write(samples["a wide perceptron"]())
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError):
        load_model(path)


def test_open_sides_can_be_given(write) -> None:
    path = write(tiny(shape=["batch", "width"]))
    model = load_model(path, input_shapes={"x": (2, 6)})
    assert model.inputs[0].shape == model.outputs[0].shape == (2, 6)
    for wrong in ({"z": (1, 2)}, {"x": (1, 2, 3)}, {"x": (0, 2)}):
        with pytest.raises(InputError):
            load_model(path, input_shapes=wrong)


def test_a_symbolic_batch_becomes_one(samples, write) -> None:
    model = load_model(write(samples["a small convolutional network"]()))
    assert model.inputs[0].shape == (1, 3, 16, 16)
    assert model.outputs[0].shape == (1, 10)
    assert model.shape_of("p1") == (1, 20, 8, 8)


def test_constants_are_folded(samples, write) -> None:
    model = load_model(write(samples["constants and shape arithmetic"]()))
    assert [node.op for node in model.nodes] == ["Identity", "Reshape", "MatMul"]
    assert [spec.name for spec in model.outputs] == ["y", "k"]


def test_control_flow_is_one_node_that_reads_its_captures(samples, write) -> None:
    model = load_model(write(samples["If with captures and a nested If"]()))
    chosen = next(node for node in model.nodes if node.op == "If")
    assert {"flag", "flag2", "h", "w"} <= set(chosen.reads)
    assert chosen.weight_bytes >= 4 * 6 * 3  # w, own and three


def test_unused_inputs_stay_inputs(samples, write) -> None:
    model = load_model(write(samples["unused inputs and initializers"]()))
    assert [spec.name for spec in model.inputs] == ["x", "idle"]


def save_external(model: onnx.ModelProto, folder: Path) -> Path:
    folder.mkdir()
    path = folder / "other-name.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    return path


def test_the_digest_ignores_storage_names_and_documentation(
    sample_proto: onnx.ModelProto, write, tmp_path: Path
) -> None:
    digest = load_model(write(sample_proto)).digest
    other = onnx.ModelProto()
    other.CopyFrom(sample_proto)
    for index, node in enumerate(other.graph.node):
        node.name, node.doc_string = f"renamed{index}", "words"
        node.attribute.sort(key=lambda item: item.name, reverse=True)
    other.producer_name = "another exporter"
    inits = list(other.graph.initializer)
    del other.graph.initializer[:]
    other.graph.initializer.extend(reversed(inits))
    path = save_external(other, tmp_path / "external")
    assert load_model(path).digest == digest


def test_the_digest_sees_every_weight_and_attribute(sample_proto: onnx.ModelProto, write) -> None:
    digest = load_model(write(sample_proto)).digest
    for tensor in sample_proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if tensor.name == "dead" or array.dtype != np.float32:
            continue
        changed = np.array(array)
        changed.flat[-1] += 1
        tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
        after = load_model(write(sample_proto)).digest
        assert after != digest
        digest = after


def test_external_data_is_mapped_and_used(samples, tmp_path: Path, feeds) -> None:
    proto = samples["a wide perceptron"]()
    (tmp_path / "sample.onnx").write_bytes(proto.SerializeToString())
    inside = load_model(tmp_path / "sample.onnx")
    outside = load_model(save_external(proto, tmp_path / "external"))
    fed = feeds(inside)
    np.testing.assert_array_equal(run_plain(inside, fed)["y"], run_plain(outside, fed)["y"])


def set_location(model: onnx.ModelProto, value: str) -> None:
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = value


@pytest.mark.parametrize("location", ["../sample.onnx", "/etc/hostname", "absent", "", "."])
def test_external_data_cannot_leave_the_folder(
    samples, write, tmp_path: Path, location: str
) -> None:
    write(samples["a wide perceptron"]())
    path = save_external(samples["a wide perceptron"](), tmp_path / "external")
    model = onnx.load(path, load_external_data=False)
    set_location(model, location)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="cannot be read"):
        load_model(path)


def test_short_external_data_is_refused(samples, tmp_path: Path) -> None:
    path = save_external(samples["a wide perceptron"](), tmp_path / "external")
    data = path.with_name("weights")
    data.write_bytes(data.read_bytes()[:-4])
    with pytest.raises(InputError, match="cut short"):
        load_model(path)


def test_model_local_functions_are_inlined(write) -> None:
    model = tiny(op="Twice", domain="local")
    model.functions.append(
        helper.make_function(
            "local",
            "Twice",
            ["a"],
            ["b"],
            [helper.make_node("Add", ["a", "a"], ["b"])],
            [helper.make_opsetid("", 17)],
        )
    )
    loaded = load_model(write(model))
    assert [node.op for node in loaded.nodes] == ["Add"]


@pytest.mark.full
def test_a_model_above_two_gib(tmp_path: Path) -> None:
    """Two matrices of 1.2 GiB in a sparse file: nothing may copy or serialise them."""
    side, rows = 1 << 14, 19661
    data = tmp_path / "weights"
    size = side * rows * 4
    with data.open("wb") as file:
        file.truncate(2 * size)
    tensors = []
    for index in range(2):
        shape = (rows, side) if index == 0 else (side, rows)
        tensor = TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "weights"), ("offset", index * size), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w0"], ["h"], transB=1),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("Gemm", ["r", "w1"], ["y"], transB=1),
        ],
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", side])],
        [onnx.ValueInfoProto(name="y")],
        tensors,
    )
    path = tmp_path / "large.onnx"
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    path.write_bytes(proto.SerializeToString())
    model = load_model(path)
    assert model.weight_bytes == 2 * size > 1 << 31
    result = run_plain(model, {"x": np.ones((1, side), np.float32)})
    assert not result["y"].any()
    settings = StageSettings(
        stage=0,
        stages=1,
        threads=1,
        budget_bytes=1 << 33,
        mode="resident",
        frames_per_pass=1,
        queue_frames=1,
    )
    stage = compile_segment(model, 0, 3, settings=settings, step_bytes=1 << 22, portable=True)
    assert sum(weight.spec.nbytes for weight in stage.program.weights) >= 2 * size
    assert sum(len(graph) for graph in stage.program.graphs) < 1 << 14
