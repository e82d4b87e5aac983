"""Runs of r1prov that are cut off, and what the next command makes of what they left (`make cuts`)."""
