"""What changes servers: a run from first contact to report, its events, the roll-out of an upgrade."""
