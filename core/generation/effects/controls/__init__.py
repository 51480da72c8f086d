"""ControlNets and LLLites during sampling."""
