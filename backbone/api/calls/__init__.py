"""The calls, one file each: words checked, the coordinator asked, the answer shaped."""
