"""What MLflow runs to load the model: models from code need no pickle. It is not imported anywhere."""

from mlflow.models import set_model

from vae.serving.pyfunc import VAEModel

set_model(VAEModel())
