"""Where networks run: ONNX Runtime, OpenVINO and others, each behind the same five methods."""
