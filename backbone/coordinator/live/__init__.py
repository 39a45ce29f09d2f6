"""Realtime data: the stream, the latest rows, the fallback to REST."""
