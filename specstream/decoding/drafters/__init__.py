"""Drafters, which propose tokens. One small file per method; ``registry`` maps methods to drafters."""
