"""Conformance of the TFLite lowering: ONNX's own node tests, each lowered and run in LiteRT."""
