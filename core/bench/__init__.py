"""The benchmark: this machine's own rates beside what training reaches of them."""
