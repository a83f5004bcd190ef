"""A checkpoint -> an ONNX graph that other programs run."""
