"""`python -m app` is the command `clerk-feed`."""

from app.cli import main

if __name__ == "__main__":
    main()
