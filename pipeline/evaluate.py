"""Evaluate on the test set: model -> metrics/{evaluate,evaluation}.json, per_class.csv, test_nll.npz, latents.npz."""

import math

import torch

from vae import tracking
from vae.checkpoints import Checkpoints
from vae.config import Params
from vae.data.binarization import binarize_once
from vae.data.datasets import Split, load
from vae.device import resolve
from vae.evaluation.kl_decomposition import split_kl
from vae.evaluation.likelihood import Evaluation, describe, evaluate, protocol_of
from vae.evaluation.linear_probe import linear_probe_accuracy, posterior_means
from vae.evaluation.sample_quality import sample_quality
from vae.files import rounded, sha256, write_arrays, write_atomically, write_json
from vae.models.vae import VAE
from vae.serving.pyfunc import save_model
from vae.tracking.kinds import log_test
from vae.training.distributed import is_first, launch, process_group, size
from vae.workflow.command_line import RESUMED, run_stage
from vae.workflow.stages import METRICS, MODEL, RAW, checkpoint_folder, load_model, read_dataset, training_run

# What `dvc metrics diff`, `dvc exp show` and `make compare` show of an evaluation.
COMPARED = (
    *("reconstruction", "kl", "elbo", "nll", "nll_standard_error", "bits_per_dimension", "importance_samples"),
    "active_units",
    *("mutual_information", "linear_probe_accuracy", "sample_frechet_distance"),
)


def main(params: Params) -> None:
    """Evaluate, in `train.nproc` processes; the first one writes the metrics."""
    if launch(params.train):
        return
    hardware = resolve(params.train)
    model = load_model(params, hardware.device)
    dataset = read_dataset()
    protocol = protocol_of(params, dataset, sha256(MODEL))
    test = binarized(load(RAW, "test"), params, hardware.device)
    checkpoints = Checkpoints(checkpoint_folder("evaluate", params, hardware))
    with process_group(hardware.device, params.train.timeout):
        first, alone = is_first(), size() == 1
        if first:
            tracking.connect()
        result = evaluate(
            model,
            test.images,
            test.labels,
            params.evaluate,
            seed=params.seed,
            progress=first,
            checkpoints=checkpoints if alone else None,  # which hold the work of one process
            shared=True,
        )
    if not first:
        return
    # Further digits depend on the processor.
    metrics = rounded({**result.metrics(), **further_metrics(model, test, result, params)})
    every = {**metrics, **protocol}
    write_json(METRICS / "evaluate.json", {name: every[name] for name in COMPARED if name in every})
    write_json(METRICS / "evaluation.json", every)
    write_atomically(
        METRICS / "per_class.csv", result.by_class(dataset["classes"]).to_csv(index=False, float_format="%.4f")
    )
    result.write_bounds(METRICS / "test_nll.npz", protocol)
    labels = {} if test.labels is None else {"labels": test.labels.cpu().numpy()}
    write_arrays(METRICS / "latents.npz", mu=result.mu, logvar=result.logvar, **labels)
    print(describe(metrics, params))
    print(f"all metrics: {METRICS / 'evaluation.json'}, by class: {METRICS / 'per_class.csv'}")
    with tracking.resume(params, hardware, dataset, sha256(MODEL), training_run(params)) as run:
        log_test(run, params, dataset, metrics)
        run.log_tags({f"test.{name}": value for name, value in protocol.items()})
        run.log_artifact(METRICS / "per_class.csv")
        arguments = (MODEL, METRICS / "test_nll.npz", test.images[:2].cpu().numpy(), model.image_shape)
        run.log_model(lambda path: save_model(path, *arguments))
    checkpoints.delete()


def binarized(split: Split, params: Params, device: torch.device) -> Split:
    """The images on `device`, binarized once, and their labels."""
    return Split(binarize_once(split.images, params.data.binarization), split.labels).to(device)


def further_metrics(model: VAE, test: Split, result: Evaluation, params: Params) -> dict[str, float]:
    """Metrics of the test set as a whole: the KL decomposition, a linear probe of the latents, sample quality."""
    mu, logvar = (torch.from_numpy(part).to(test.images.device) for part in (result.mu, result.logvar))
    print("decomposing the KL")
    parts = split_kl(model, mu, logvar, seed=params.seed)
    if not parts:
        most = f"ln {len(test):,} = {math.log(len(test)):.1f} nats"
        print("left out: the decomposition of the KL, as the mutual information is too large to")
        print(f"be estimated from {len(test):,} images (they show {most} at most)")
    train = load(RAW, "train")  # with the validation images: the VAE has seen no labels
    if any(part.labels is None or len(part.labels.unique()) < 2 for part in (train, test)):
        print("left out: the linear probe and the quality of samples, which need images of two classes")
        return parts
    train = binarized(train, params, test.images.device)
    if model.classes:
        print("left out: the linear probe, since the latents of a conditional model depend on the label it is given")
    else:
        print("fitting a linear probe of the latents")
        train_mu = posterior_means(model, train.images, params.evaluate).cpu().numpy()
        accuracy = linear_probe_accuracy(train_mu, train.require_labels().cpu(), result.mu, test.require_labels().cpu())
        parts |= {"linear_probe_accuracy": accuracy, "linear_probe_images": len(train)}
    print("training classifiers, in whose features samples are compared with images")
    binary = params.data.binarization != "none"
    quality = sample_quality(model, train, test, params.evaluate, binary=binary, seed=params.seed)
    if not quality:
        print(f"left out: {len(train):,} training images are too few beside {len(test):,} test images")
    return parts | quality


if __name__ == "__main__":
    run_stage(main, __doc__, interrupted=RESUMED)
