"""Hyperparameters of LightningModules that know nothing of hypernetworks, turned into dials by one callback."""
