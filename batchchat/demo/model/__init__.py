"""The demo model: what it answers, by rules that need no weights. The server around it is `batchchat.demo`."""
