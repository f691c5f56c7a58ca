"""Check the statements of docs/theory.md, print them, and write the page's numbers and pictures."""

import argparse
import sys
from pathlib import Path

from vae.errors import VAEError
from vae.theory.page import SECTIONS, number, write


def main() -> None:
    """Print a line a check; the page is left as it was if one fails."""
    parser = argparse.ArgumentParser(prog="python -m vae.theory", description=__doc__)
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
    try:
        main()
    except VAEError as error:
        sys.exit(f"error: {error}")
