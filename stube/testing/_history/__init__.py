"""Histories of many threads: the records, the recorder, and the checker with its rules. Private."""
