"""Files that are wrong, by the thousand, for the readers of files."""
