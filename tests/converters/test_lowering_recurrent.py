"""LSTM, GRU and RNN against ONNX Runtime, in the forms that the operators' own tests leave out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from converters.one_node import Array, OneNode, assert_equal, in_litert, in_onnxruntime
from converters.onnx_models import operators, weights
from edgefleet.errors import UnsupportedError

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_TIME, _BATCH, _INPUTS, _SIZE = 4, 3, 2, 5


def layer(operator: str, direction: str = "forward", *, states: bool = False, **attributes: object) -> OneNode:
    """A layer with biases and all outputs; `states` feeds first states."""
    count, gates = 2 if direction == "bidirectional" else 1, _GATES[operator]
    first = weights(count, _BATCH, _SIZE, seed=4) if states else None
    inputs: tuple[Array | None, ...] = (
        weights(_TIME, _BATCH, _INPUTS, seed=0),
        weights(count, gates * _SIZE, _INPUTS, seed=1) * 0.7,
        weights(count, gates * _SIZE, _SIZE, seed=2) * 0.7,
        weights(count, 2 * gates * _SIZE, seed=3),
        None,
        first,
    )
    outputs: tuple[str, ...] = ("y", "y_h")
    if operator == "LSTM":
        inputs, outputs = (*inputs, None if first is None else first[::-1].copy()), (*outputs, "y_c")
    described = {"hidden_size": _SIZE, "direction": direction, **attributes}
    return OneNode(operator, inputs, outputs, constant=(1, 2, 3), attributes=described)


def with_input(case: OneNode, position: int, array: Array) -> OneNode:
    """The same layer with one input set."""
    inputs = [*case.inputs, *[None] * (position + 1 - len(case.inputs))]
    inputs[position] = array
    return replace(case, inputs=tuple(inputs))


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("operator", _GATES)
def test_directions_and_first_states(operator: str, states: bool, direction: str) -> None:
    case = layer(operator, direction, states=states)
    assert_equal(case, in_onnxruntime(case))


FORMS: dict[str, tuple[str, dict[str, object]]] = {
    "gru linear before reset": ("GRU", {"linear_before_reset": 1}),
    "gru clipped": ("GRU", {"clip": 0.3}),
    "lstm coupled": ("LSTM", {"input_forget": 1}),
    "lstm functions": ("LSTM", {"activations": ["HardSigmoid", "Softsign", "Relu"]}),
    "gru functions": (
        "GRU",
        {"activations": ["HardSigmoid", "LeakyRelu"], "activation_alpha": [0.3, 0.2], "activation_beta": [0.4]},
    ),
    "rnn affine": ("RNN", {"activations": ["Affine"], "activation_alpha": [0.5], "activation_beta": [0.1]}),
    "rnn scaled": ("RNN", {"activations": ["ScaledTanh"], "activation_alpha": [0.5], "activation_beta": [1.5]}),
    "rnn elu": ("RNN", {"activations": ["Elu"], "activation_alpha": [0.5]}),
    "rnn threshold": ("RNN", {"activations": ["ThresholdedRelu"], "activation_alpha": [0.4]}),
    "rnn softplus": ("RNN", {"activations": ["Softplus"]}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("states", [False, True])
def test_attributes(form: str, states: bool) -> None:
    operator, attributes = FORMS[form]
    case = replace(layer(operator, states=states), attributes={"hidden_size": _SIZE, **attributes})
    assert_equal(case, in_onnxruntime(case))


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("operator", _GATES)
def test_sequences_that_end_early(operator: str, constant: bool, direction: str) -> None:
    case = with_input(layer(operator, direction, states=True), 4, np.array([2, 4, 1], np.int32))
    case = replace(case, constant=(1, 2, 3, 4) if constant else (1, 2, 3))
    assert_equal(case, in_onnxruntime(case))


@pytest.mark.parametrize("operator", _GATES)
def test_weights_that_are_computed(operator: str) -> None:
    case = replace(layer(operator, "bidirectional"), constant=())
    assert_equal(case, in_onnxruntime(case))


def test_peepholes() -> None:
    case = with_input(layer("LSTM", states=True), 7, weights(1, 3 * _SIZE, seed=9))
    assert_equal(case, in_onnxruntime(case))


@pytest.mark.parametrize("operator", _GATES)
def test_batch_first_is_the_same_with_axes_exchanged(operator: str) -> None:
    case = layer(operator, "bidirectional", states=True)
    expected = in_onnxruntime(case)
    axes = {"y": (2, 0, 1, 3), "y_h": (1, 0, 2), "y_c": (1, 0, 2)}
    turned = tuple(
        array if array is None or position in (1, 2, 3) else np.ascontiguousarray(array.swapaxes(0, 1))
        for position, array in enumerate(case.inputs)
    )
    batch_first = replace(case, inputs=turned, attributes={**case.attributes, "layout": 1})
    assert_equal(batch_first, {name: array.transpose(axes[name]) for name, array in expected.items()})


@pytest.mark.parametrize("operator", _GATES)
def test_half_precision(operator: str) -> None:
    case = layer(operator, "bidirectional", states=True)
    halves = replace(case, inputs=tuple(None if array is None else array.astype(np.float16) for array in case.inputs))
    expected = {name: array.astype(np.float16) for name, array in in_onnxruntime(case).items()}
    assert_equal(halves, expected, tolerance=4e-3)


def test_a_second_call_starts_anew() -> None:
    case = layer("LSTM")
    runner = Interpreter(model_content=in_litert(case)[0].content, num_threads=1).get_signature_runner()
    first, second = runner(**case.fed()), runner(**case.fed())
    np.testing.assert_array_equal(first["y"], second["y"])


def test_the_inputs_of_all_steps_are_one_product() -> None:
    lowered, _ = in_litert(layer("LSTM"))
    names = operators(lowered)
    assert names.count("FULLY_CONNECTED") == _TIME  # one for the inputs, one for each state but the first
    assert names.count("UNPACK") == 1


def test_a_clipped_lstm_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="clip"):
        in_litert(layer("LSTM", clip=0.3))


def test_an_unknown_function_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="the activation Cosine"):
        in_litert(layer("RNN", activations=["Cosine"]))
