"""`python -m layercache`."""

from layercache.cli import main

main()
