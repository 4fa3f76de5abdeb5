"""Exports: a run or a race as one HTML file, as a picture, as an animation, and a gallery of runs."""
