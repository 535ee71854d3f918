"""Processes: ranks, launchers, data workers, signals."""
