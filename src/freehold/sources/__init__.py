"""Brings artifacts from elsewhere: a hub, a folder."""
