"""``python -m lightning_mip``."""

from lightning_mip.cli import main

if __name__ == "__main__":
    main()
