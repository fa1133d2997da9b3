"""Targets, which run networks: ONNX Runtime, OpenVINO and others behind one interface of five methods."""
