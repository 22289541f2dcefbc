"""Paired training comparisons: the same seeds with and without a rescale, and what their differences allow one to say.

spec -> folder -> cells (arm x learning rate x seed), trained side by side -> statistics. Everything a comparison is
lies in its folder; whoever shows it only reads.
"""
