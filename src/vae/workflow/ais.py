"""`make ais`: check the NLL of the trained model by annealed importance sampling."""

from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from vae.config import Params, PositiveInt, Section, checked, load_params
from vae.data.binarization import to_float
from vae.device import resolve
from vae.evaluation.ais import AIS, sample_images
from vae.evaluation.likelihood import evaluate
from vae.evaluation.paired import paired_difference
from vae.files import rounded, sha256, write_json
from vae.workflow.command_line import ArgumentParser, errors_in_one_line, scalar
from vae.workflow.stages import MODEL, load_model, read_dataset, some_test_images

OUTPUT = Path("results/ais.json")


class AISParams(Section):
    """The size of the check."""

    images: Annotated[int, Field(ge=2)] = 100  # one has no standard error
    """Test images, evenly spaced, and as many images of the model."""
    chains: PositiveInt = 4
    """Chains for each image."""
    temperatures: PositiveInt = 2000
    """Steps from the prior to the posterior."""


def check_nll(params: Params, size: AISParams) -> None:
    """Compare the NLL of test images by AIS with the importance-weighted one; write results/ais.json.

    For images of the model, whose NLL lies between two values on average, it shows how far AIS itself is off.
    """
    device = resolve(params.train).device
    model, dataset = load_model(params, device), read_dataset()
    targets = some_test_images(params, size.images).to(device)
    generator = torch.Generator(device).manual_seed(params.seed)
    ais = AIS(model, generator, size.chains, size.temperatures, progress=True)
    weighted = evaluate(model, targets, None, params.evaluate, seed=params.seed).images["nll"].to_numpy()
    print(f"{len(targets)} test images, {size.chains} chains each, {size.temperatures:,} temperatures")
    nll = ais.nll(to_float(targets)).cpu().numpy()
    difference = paired_difference(nll, weighted)
    samples = params.evaluate.importance_samples
    print(f"test NLL by AIS {nll.mean():.2f}, by {samples} importance samples {weighted.mean():.2f}:")
    print(f"AIS − importance sampling {difference.mean:.2f} ± {difference.standard_error:.2f} nats per image")
    print(f"{len(targets)} images of the model, whose latents are known")
    x, u = sample_images(model, len(targets), generator)
    above, below = (bound.mean().item() for bound in (ais.nll(x), ais.nll_from_posterior(x, u)))
    print(f"their NLL by AIS: {above:.2f} from the prior, {below:.2f} from the posterior")
    values = {"ais_nll": float(nll.mean()), "nll": float(weighted.mean()), **difference._asdict()}
    values |= {"model_images_above": above, "model_images_below": below}
    protocol = {**size.model_dump(), "importance_samples": samples, "dataset": dataset["name"], "seed": params.seed}
    write_json(OUTPUT, {**rounded(values), **protocol, "weights_sha256": sha256(MODEL)})
    print(OUTPUT)


if __name__ == "__main__":
    with errors_in_one_line("nothing was written"):
        parser = ArgumentParser(__doc__)
        for name, field in AISParams.model_fields.items():
            parser.add_argument(f"--{name}", type=scalar, default=field.default, help=field.description)
        options = {name: value for name, value in vars(parser.parse_args()).items() if name in AISParams.model_fields}
        check_nll(load_params(), checked(AISParams, options))
