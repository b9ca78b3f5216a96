"""Published language-model techniques, side by side on your own model and data."""

__version__ = "0.1.0"
