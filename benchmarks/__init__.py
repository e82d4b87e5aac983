"""What r1prov's arithmetic costs, and what it is worth."""
