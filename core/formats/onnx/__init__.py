"""ONNX models: files are checked before a library opens them, and run in a separate process."""
