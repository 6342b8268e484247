"""Random programs that are performed on a backend and on a sequential model, and compared. Private."""
