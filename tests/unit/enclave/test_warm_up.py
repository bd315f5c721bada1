from __future__ import annotations

from onnx import TensorProto, helper

from vaultline.enclave import executor


def test_the_engine_warms_up_with_a_model_of_one_operator() -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    model.ClearField("producer_name")
    assert model.SerializeToString(deterministic=True) == executor._ABS
    executor.warm_up()
