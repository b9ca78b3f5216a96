"""Language models: loading, saving, anatomy and scoring."""

from bakeoff.lm.anatomy import Anatomy, Block, Part, anatomy
from bakeoff.lm.decoder import DecoderConfig, DecoderForCausalLM
from bakeoff.lm.load import Loaded, clone, fingerprint, load, reference, resolve, save, weights_digest

__all__ = [
    "Anatomy", "Block", "DecoderConfig", "DecoderForCausalLM", "Loaded", "Part", "anatomy", "clone", "fingerprint", "load",
    "reference", "resolve", "save", "weights_digest",
]  # fmt: skip
