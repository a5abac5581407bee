"""The report of runs as one HTML page, from what the store has: pure functions of `data.RunData`."""
