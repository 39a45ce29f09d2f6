"""Doors for programs that come from elsewhere: change one import, keep the rest.

`backbone.compat.pyupbit` has pyupbit's quotation functions, `backbone.compat.legacy` (and `legacy_async`) the adapter
of the system that backbone replaces. Behind them is one client, made on first use from the environment
(``BACKBONE_REST_URL``, ``BACKBONE_DATA_DIR``, …) or by `initialize`, and ended by `cleanup`. Where a door does
something else than what it stands in for, because that was wrong, it says so once with a `DifferenceWarning`.
"""

from backbone.compat.default_client import DifferenceWarning, cleanup, get_client, initialize

__all__ = ["DifferenceWarning", "cleanup", "get_client", "initialize"]
