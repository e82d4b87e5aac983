"""A wedged engine is found and restarted: many times over, and never without a cause."""
