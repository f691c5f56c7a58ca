"""Check the statements of docs/theory.md, print the results, and rewrite the page's tables and figures."""

from vae.theory.page import main
from vae.workflow.command_line import ArgumentParser, errors_in_one_line

with errors_in_one_line("the page was not rewritten"):
    ArgumentParser(__doc__, "python -m vae.theory").parse_args()
    main()
