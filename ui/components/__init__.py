"""Parts of the page that several tabs show."""
