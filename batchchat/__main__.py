"""`python -m batchchat` is `batchchat`."""

from batchchat.cli import main

main()
