"""Runs a described process: on this machine, under bubblewrap where it can be had."""
