"""Decisions as pure functions: access, lifecycle, retry times, prices."""
