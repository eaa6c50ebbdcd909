"""The commands beside those of LightningCLI, one file each, and what they share."""
