"""ONNX → TFLite: named passes over a small graph of our own, then one function per operator.

`lower` is the way in; it does not quantise.
"""

from edgefleet_converters.tflite.lowering import Layout, Lowered, LoweredTensor, lower

__all__ = ["Layout", "Lowered", "LoweredTensor", "lower"]
