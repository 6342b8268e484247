"""The promises of the contract: the guarantees by number, and the optional capabilities by name. Private."""
