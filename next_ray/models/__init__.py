"""Base models: finding, preparing and fingerprinting them, and the tiny model that is made on the spot."""
