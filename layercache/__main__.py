"""`python -m layercache`."""

from layercache.cli import main

if __name__ == "__main__":
    main()
