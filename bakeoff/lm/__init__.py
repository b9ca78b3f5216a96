"""Language models: loading, saving, anatomy and scoring."""

from bakeoff.lm.anatomy import Anatomy, Block, Part, anatomy
from bakeoff.lm.load import Loaded, clone, fingerprint, load, reference, resolve, save, weights_digest

__all__ = [
    "Anatomy", "Block", "Loaded", "Part", "anatomy", "clone", "fingerprint", "load", "reference", "resolve", "save",
    "weights_digest",
]  # fmt: skip
