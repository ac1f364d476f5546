"""Diagnosis: why a sync goes wrong, or would. The commands `check` and `probe` print what is found here."""
