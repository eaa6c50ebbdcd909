"""Hypernetworks for PyTorch Lightning: one training run, every value of the dial."""

from lightning_mip.as_prior import FromTorch as FromTorch
from lightning_mip.callbacks import Hypernetize as Hypernetize
from lightning_mip.callbacks import MagnitudeMonitor as MagnitudeMonitor
from lightning_mip.callbacks import PerHMetrics as PerHMetrics
from lightning_mip.callbacks import SampleH as SampleH
from lightning_mip.chunked import Chunked as Chunked
from lightning_mip.diagnosis.diagnose import diagnose as diagnose
from lightning_mip.exporting import export as export
from lightning_mip.hypernetize import dehypernetize as dehypernetize
from lightning_mip.hypernetize import hypernetize as hypernetize
from lightning_mip.hypernetize import materialize as materialize
from lightning_mip.hypernetize import summary as summary
from lightning_mip.hypernetwork import HyperNetwork as HyperNetwork
from lightning_mip.injection import at as at
from lightning_mip.low_rank import LowRank as LowRank
from lightning_mip.metrics import PerH as PerH
from lightning_mip.module import HyperLightningModule as HyperLightningModule
from lightning_mip.priors import Categorical as Categorical
from lightning_mip.priors import LogUniform as LogUniform
from lightning_mip.priors import Normal as Normal
from lightning_mip.priors import Prior as Prior
from lightning_mip.priors import Simplex as Simplex
from lightning_mip.priors import Uniform as Uniform
from lightning_mip.space import HSpace as HSpace
