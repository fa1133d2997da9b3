"""Lowering: from a plain graph module to an ONNX model, without running it and without torch.onnx."""
