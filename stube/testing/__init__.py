"""For authors of backends and for hosts: the conformance suite, and a pytest plugin with a virtual clock.

A backend's whole test file is one import and one fixture (or the option `--stube-backend`):

    import pytest
    from stube.testing.suite import *

    @pytest.fixture
    def stube_backend():
        return "package.module:factory"

A host asks for the fixture `virtual_registry`: time stands still until the test moves it, and a handler that fails
fails the test. The extra `testing` brings what this package needs.
"""
