"""The encoder pair: load, train, evaluate, embed. Knows nothing of indexes or HTTP."""

from models.environment import forbid_telemetry

forbid_telemetry()  # before any library that would report home is imported
