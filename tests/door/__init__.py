"""Many people at a door with three engines: who gets which, who waits for how long, and what is lost when one of the engines is killed."""
