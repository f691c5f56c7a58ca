"""`python -m vae.tracking`: serve the MLflow UI."""

import sys

from vae.errors import TrackingError
from vae.tracking.store import serve_ui

try:
    serve_ui()
except TrackingError as error:
    sys.exit(f"error: {error}")
