"""The files that `batchchat init` writes."""
