"""The parts of the pytest plugin `stube.testing.plugin`, each a plugin that it loads. Private."""
