"""The HTML report and the figures for papers."""
