"""batchchat: run one prompt over many rows, and never lose or pay twice for an answer."""

__version__ = "0.1.0"
