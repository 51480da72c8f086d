"""Pose control images: people's poses, estimated by ONNX models and drawn as the authors of pose ControlNets draw them."""
