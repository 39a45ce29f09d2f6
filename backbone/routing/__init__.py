"""Who can answer: the venue's dialect, REST, the live stream. Knows neither storage nor what calls it."""
