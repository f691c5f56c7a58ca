"""`python -m vae.examples`."""

from vae.examples.studies import main

main()
