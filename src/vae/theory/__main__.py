"""Check the statements of docs/theory.md, print them, and write the page's numbers and pictures."""

from pathlib import Path

from vae.errors import VAEError
from vae.theory.page import SECTIONS, number, write
from vae.workflow.command_line import ArgumentParser, errors_in_one_line


def main() -> None:
    """Print a line a check; the page is left as it was if one fails."""
    parser = ArgumentParser(__doc__, "python -m vae.theory")
    parser.add_argument("--page", type=Path, default=Path("docs/theory.md"), help="the page to rewrite")
    page = parser.parse_args().page
    if not page.is_file():
        raise VAEError(f"{page} not found: run it in the repository's root, or say --page")
    sections = {}
    for name, compute in SECTIONS.items():
        sections[name] = compute()
        for check in sections[name].checks:
            verdict = "ok    " if check.holds else "FAILED"
            numbers = f"{number(check.measured)}  {number(check.expected)}"
            print(f"{verdict} {name}: {check.statement}:  {numbers}  ({check.difference})", flush=True)
    failed = sum(not check.holds for section in sections.values() for check in section.checks)
    if failed:
        raise VAEError(f"{failed} of the statements didn't hold; {page} is left as it was")
    write(page, sections)


if __name__ == "__main__":
    with errors_in_one_line("the page is left as it was"):
        main()
