"""What the embedded exchange trades: prices, candles, trades and books."""
