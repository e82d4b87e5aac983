"""Measures the speed of r1prov and the quality of its plans and of the MLA form."""
