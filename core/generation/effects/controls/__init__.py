"""ControlNets and LLLites at the steps of a generation."""
