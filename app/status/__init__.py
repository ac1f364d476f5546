"""What happens, and who reads of it."""
