"""One file a tab: its layout and its events."""
