"""The conformance command: it runs the suite in processes of its own and reports on each guarantee. Private."""
