"""Models conditioned on a control image: ControlNet and ControlNet-LLLite, as networks and as files."""
