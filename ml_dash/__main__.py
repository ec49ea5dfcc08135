"""`python -m ml_dash` is the command `ml-dash`."""

from ml_dash.cli import main

if __name__ == "__main__":
    main()
