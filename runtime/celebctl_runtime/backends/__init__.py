"""Inference engines that run the graphs of a bundle: ONNX Runtime and TensorRT."""
