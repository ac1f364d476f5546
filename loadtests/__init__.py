"""Load on real parts: what clerk-feed does for an importer, measured beside what a feed written by hand does."""
