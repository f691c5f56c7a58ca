"""What `import vae` shows."""

import vae
import vae.search.study  # loads submodules
from support import ROOT


def test_dir_shows_the_public_names_only_and_the_version_is_that_of_the_citation():
    assert "VAE" in dir(vae) == sorted(vae.__all__)
    assert f"\nversion: {vae.__version__}\n" in (ROOT / "CITATION.cff").read_text()
