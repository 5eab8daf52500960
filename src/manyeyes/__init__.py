"""manyeyes: sites train one object detector together without sharing a picture."""

from manyeyes.config import RunConfig, load_config, parse_config
from manyeyes.errors import ManyeyesError
from manyeyes.weights import Update, Weights

__all__ = ["ManyeyesError", "RunConfig", "Update", "Weights", "load_config", "parse_config"]
