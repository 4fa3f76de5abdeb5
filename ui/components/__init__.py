"""Parts of the page shared by several tabs."""
