"""The backends that ship with stube, each an entry point of the group `stube.backends`.

Ask for one by name (`stube.create_registry("memory")`); nothing needs to import this package. For authors of
backends `stube_backends.engine` is public, and provisional until 1.0.
"""
