"""People in an image found by ONNX models, and drawn as ControlNets for poses are trained with."""
