"""What `true` stands for where a search may be told how to be done; shared by HTTP and commands."""

from __future__ import annotations

from typing import Final

HYBRID: Final = 0.4
"""Weight of the words beside the vectors."""
DEDUPLICATE: Final = 0.95
"""Cosine from which two items count as one."""
