"""Threads and unruly handlers on one registry, and the audit of what came of it. Private."""
