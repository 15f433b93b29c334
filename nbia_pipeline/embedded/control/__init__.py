"""The control interface: change a running archive, inject faults, read what it was asked."""

from nbia_pipeline.embedded.control.client import Control, ControlError
from nbia_pipeline.embedded.control.fault import KINDS, Fault, FaultError

__all__ = ["KINDS", "Control", "ControlError", "Fault", "FaultError"]
