"""What the contract promises: the guarantees by number, and the optional capabilities by name. Private."""
