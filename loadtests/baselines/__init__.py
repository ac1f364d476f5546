"""What one would write without clerk-feed, as well as it is written by hand."""
