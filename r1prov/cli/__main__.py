"""`python -m r1prov.cli`."""

from r1prov.cli import main

main()
