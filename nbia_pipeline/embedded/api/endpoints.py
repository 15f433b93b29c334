"""The table of endpoints: path, what answers, identity, parameters."""

from __future__ import annotations

from nbia_pipeline.embedded.api.endpoint import Endpoint
from nbia_pipeline.embedded.api.endpoints_v2 import UNVERSIONED, V1, V2
from nbia_pipeline.embedded.api.endpoints_v4 import V4

ENDPOINTS: tuple[Endpoint, ...] = (*V1, *V2, *V4, *UNVERSIONED)
"""Every endpoint of the embedded archive besides token, logout and liveness."""
