"""What `import vae` shows."""

import subprocess
import sys

import vae
from support import ENVIRONMENT, ROOT

SHOW = "import vae.config; print(*dir(vae)); print('torch' in __import__('sys').modules)"


def test_dir_shows_the_public_names_only_and_imports_nothing_heavy():
    command = [sys.executable, "-c", SHOW]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT / "src", capture_output=True, text=True, check=True)
    names, torch_is_imported = done.stdout.splitlines()
    assert names.split() == dir(vae) == sorted(vae.__all__)
    assert {"VAE", "VAETrainer", "fit"} <= set(names.split()) and "config" not in names.split()
    assert torch_is_imported == "False"


def test_the_version_is_that_of_the_citation():
    assert f"\nversion: {vae.__version__}\n" in (ROOT / "CITATION.cff").read_text()
