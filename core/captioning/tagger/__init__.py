"""ONNX taggers: WD14 and its relatives."""
