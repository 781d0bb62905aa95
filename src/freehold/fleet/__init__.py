"""The daemon: desired endpoints, replicas with one owner each, wake, idle, occupancy."""
