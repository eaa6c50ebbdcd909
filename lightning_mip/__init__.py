"""Hypernetworks for PyTorch Lightning: one training run, every value of the dial."""

from importlib.metadata import version

from lightning_mip.as_prior import FromTorch
from lightning_mip.callbacks import Hypernetize, MagnitudeMonitor, PerHMetrics, SampleH
from lightning_mip.checkpoint_io import AtomicCheckpointIO
from lightning_mip.choose import Choice, choose
from lightning_mip.chunked import Chunked
from lightning_mip.diagnosis.diagnose import diagnose
from lightning_mip.exporting import export
from lightning_mip.hypernetize import dehypernetize, hypernetize, materialize, summary
from lightning_mip.hypernetwork import HyperNetwork
from lightning_mip.injection import at
from lightning_mip.low_rank import LowRank
from lightning_mip.metrics import PerH
from lightning_mip.module import HyperLightningModule
from lightning_mip.priors import Categorical, LogUniform, Normal, Prior, Simplex, Uniform
from lightning_mip.space import HSpace
from lightning_mip.sweep import sweep
from lightning_mip.table import Sweep

__version__ = version("lightning-mip")

__all__ = [
    "AtomicCheckpointIO",
    "Categorical",
    "Choice",
    "Chunked",
    "FromTorch",
    "HSpace",
    "HyperLightningModule",
    "HyperNetwork",
    "Hypernetize",
    "LogUniform",
    "LowRank",
    "MagnitudeMonitor",
    "Normal",
    "PerH",
    "PerHMetrics",
    "Prior",
    "SampleH",
    "Simplex",
    "Sweep",
    "Uniform",
    "at",
    "choose",
    "dehypernetize",
    "diagnose",
    "export",
    "hypernetize",
    "materialize",
    "summary",
    "sweep",
]


def __dir__() -> list[str]:
    """The public names, without the modules that they are in."""
    return __all__
