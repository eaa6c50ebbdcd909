"""Callbacks, one per file."""

from lightning_mip.callbacks.hypernetize import Hypernetize as Hypernetize
from lightning_mip.callbacks.magnitude_monitor import MagnitudeMonitor as MagnitudeMonitor
from lightning_mip.callbacks.per_h_metrics import PerHMetrics as PerHMetrics
from lightning_mip.callbacks.sample_h import SampleH as SampleH
