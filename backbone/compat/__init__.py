"""For programs that were written for something else: change one import, keep the rest.

`backbone.compat.pyupbit` has pyupbit's quotation functions, `backbone.compat.legacy` the adapter of the system that
backbone replaces. Both use one client, made on first use from the environment (``BACKBONE_REST_URL``,
``BACKBONE_DATA_DIR``, …) or by `initialize`, and ended by `cleanup`. Where a module answers otherwise than what it
stands in for, because that was wrong, it warns once (`DifferenceWarning`).
"""

from backbone.imports import undisturbed

with undisturbed():
    from backbone.compat.default_client import DifferenceWarning, cleanup, get_client, initialize

__all__ = ["DifferenceWarning", "cleanup", "get_client", "initialize"]
