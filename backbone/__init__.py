"""backbone: market data of the Upbit exchange as DataFrames.

>>> from backbone import Backbone
>>> with Backbone.demo(seed=7, now="2025-08-22T09:00:00Z") as client:   # an exchange inside the process, no network
...     client.candles("KRW-BTC", "1m", count=3).shape
(3, 6)

`Backbone` is the client; `Priority` and `DataType` are enums whose names are accepted as strings; `BackboneRequest` and
`BackboneResponse` are the envelope form of the same calls; `errors` holds the error tree. Importing backbone starts no
thread, opens no file, reads no environment, and loads nothing heavy: names are resolved on first use.
"""

from __future__ import annotations

import importlib
import logging
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from backbone.imports import undisturbed

if TYPE_CHECKING:
    from backbone import errors as errors
    from backbone.api.calls.request import BackboneMetadata as BackboneMetadata
    from backbone.api.calls.request import BackboneRequest as BackboneRequest
    from backbone.api.calls.request import BackboneResponse as BackboneResponse
    from backbone.api.client import Backbone as Backbone
    from backbone.api.convert import export as export
    from backbone.api.convert import naive as naive
    from backbone.api.convert import resample_trading_day as resample_trading_day
    from backbone.api.convert import to_ohlc as to_ohlc
    from backbone.api.format import to_display as to_display
    from backbone.api.rounding import round_price as round_price
    from backbone.model import DataType as DataType
    from backbone.model import Priority as Priority

__version__ = "0.1.0"

_HOMES = {
    "Backbone": "backbone.api.client",
    "BackboneMetadata": "backbone.api.calls.request",
    "BackboneRequest": "backbone.api.calls.request",
    "BackboneResponse": "backbone.api.calls.request",
    "DataType": "backbone.model",
    "Priority": "backbone.model",
    "export": "backbone.api.convert",
    "naive": "backbone.api.convert",
    "resample_trading_day": "backbone.api.convert",
    "round_price": "backbone.api.rounding",
    "to_display": "backbone.api.format",
    "to_ohlc": "backbone.api.convert",
}

__all__ = ["errors", *_HOMES]

# What is logged from threads must not land in whatever notebook cell runs: it goes where the application sends it.
logging.getLogger("backbone").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("backbone.errors")
    if home := _HOMES.get(name):
        with undisturbed() if home not in sys.modules else nullcontext():
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'backbone' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
