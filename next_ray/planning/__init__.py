"""What a job will take on given devices: an analytical model of memory, time and cost (docs/planning.md)."""
