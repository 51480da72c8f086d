"""The benchmark: this machine's own rates, and what training reaches of them."""
