"""``python -m lightning_mip``."""

from lightning_mip.cli import run

if __name__ == "__main__":
    run()
