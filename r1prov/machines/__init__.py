"""What a server is: the hardware of a profile, and what was tuned on a host."""
