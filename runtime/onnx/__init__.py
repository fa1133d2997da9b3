"""ONNX files: written, checked, quantised and run."""
