"""Segmentation at every rescale factor: one network, from cheap to accurate."""
