"""Write, check, quantise and run ONNX files."""
