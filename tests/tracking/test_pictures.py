"""Pictures arrive in MLflow with their steps and times, whatever happens to it meanwhile."""

from PIL import Image

from vae import tracking
from vae.tracking.run import unsynced

client = tracking.mlflow.MlflowClient


def test_a_picture_that_mlflow_did_not_take_is_logged_later_once(lock):
    with tracking.open_run("pictured") as run:
        run.log_image("samples", Image.new("L", (6, 4)), 1)
        lock(True)
        run.log_image("samples", Image.new("RGB", (6, 4)), 2)
        run.log_metrics({"loss": 1.0}, step=2)
        assert len(list(unsynced().rglob("*.png"))) == 1
    lock(False)
    assert tracking.sync() == [] and not list(unsynced().rglob("*.png"))
    names = [file.path for file in client().list_artifacts(run.id, "images") if file.path.endswith(".png")]
    steps, times = zip(*sorted((int(name.split("+")[2]), int(name.split("+")[4])) for name in names), strict=True)
    assert steps == (1, 2) and times[0] < times[1] <= client().get_run(run.id).info.end_time
    assert client().get_run(run.id).data.metrics == {"loss": 1.0}
