"""Files that other programs wrote: what they hold is read, checked, and said."""
