"""Candles: what is held, what is planned, what is on its way."""
