"""Decisions as pure functions: access, law, lifecycle, retry times, prices."""
