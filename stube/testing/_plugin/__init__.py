"""The parts of the pytest plugin `stube.testing.plugin`, each a plugin that it loads. Private."""

from __future__ import annotations

import pytest

# Here, because pytest can rewrite the assertions only of modules that are not imported yet.
pytest.register_assert_rewrite(
    "stube.testing._harness",
    "stube.testing._plugin.options",
    "stube.testing._plugin.suite_fixtures",
    "stube.testing._plugin.virtual_registry",
    "stube.testing.suite",
)
