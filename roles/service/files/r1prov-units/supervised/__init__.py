"""Runs units on a host whose first process is not systemd."""
