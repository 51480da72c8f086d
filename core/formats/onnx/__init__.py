"""ONNX models: checked before a library opens them, and run in a separate process."""
