"""params.yaml as frozen, strict, typed sections: what is not listed here, or out of range, is refused by name."""

import difflib
import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError, core_schema
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from vae.errors import ConfigError, hide_passwords

MNISTLike = Literal["MNIST", "FashionMNIST", "KMNIST"]  # four IDX files of grey images, 28×28
DatasetName = Literal[MNISTLike, "EMNIST-letters", "CIFAR10", "SVHN", "CelebA"]
Source = Literal["auto", "mirror", "directory", "bundled", "folder"]
Binarization = Literal["dynamic", "static", "threshold", "none"]
Activation = Literal["silu", "relu", "gelu", "tanh", "glu"]
Initialization = Literal["default", "xavier", "kaiming", "orthogonal"]
OptimizerName = Literal["adam", "muon"]
LRSchedule = Literal["constant", "step", "cosine", "one_cycle"]
NumberedDevice = Annotated[str, Field(pattern=r"^(cuda|mps):\d+$", examples=["cuda:1"])]
DeviceName = Literal["auto", "cpu", "mps", "cuda"] | NumberedDevice
Precision = Literal["auto", "fp32", "bf16"]
TrainObjective = Literal["elbo", "iwae"]
Objective = Literal["elbo", "rate_distortion"]
Pruner = Literal["median", "hyperband", "none"]

Function = TypeVar("Function", bound=Callable[..., Any])

# The names of a model's parts. A new part is a class in `vae.models`, and its name here.
ARCHITECTURE_NAMES = ["mlp", "conv"]
PRIOR_NAMES = ["standard", "gaussian_mixture", "vampprior", "realnvp"]
FACTORIZED_PRIORS = {"standard"}  # those with independent dimensions, whose KL has a closed form for each
LIKELIHOOD_NAMES = ["auto", "bernoulli", "gaussian", "discretized_logistic"]
BINARY_LIKELIHOODS = {"bernoulli"}  # those of black-and-white images; the others are for grey and colour values


@dataclass(frozen=True)
class OneOf:
    """Annotates a string that must be one of `names`; the list may grow after the annotation is made."""

    names: list[str]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: Any) -> dict[str, Any]:
        return {"enum": self.names}

    def _check(self, name: str) -> str:
        if name not in self.names:
            *others, last = map(repr, self.names)
            allowed = f"{', '.join(others)} or {last}" if others else last
            raise PydanticCustomError("one_of", "Input should be {allowed}", {"allowed": allowed})
        return name


def _check_size(value: float) -> float:
    if value >= 2**31:
        raise ValueError("too large, allowed is less than 2**31")
    return value


PositiveInt = Annotated[int, Field(ge=1), AfterValidator(_check_size)]
PositiveFloat = Annotated[float, Field(gt=0), AfterValidator(_check_size)]
NonNegativeFloat = Annotated[float, Field(ge=0), AfterValidator(_check_size)]
HeightAndWidth = Annotated[tuple[PositiveInt, ...], Field(min_length=2, max_length=2, strict=False)]


class Section(BaseModel):
    """Frozen, no unknown keys, no silent conversion ("2" is not 2), no NaN or infinity.

    The line under a field is its description, which `train-vae --help` shows.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )


class Seeded(Section):
    """What is in no section."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of everything drawn at random."""


class DataParams(Section):
    """Which images, where from, and how grey becomes black and white."""

    dataset: DatasetName = "MNIST"
    """The images, unless source is folder."""
    source: Source = "auto"
    """Where from: a mirror, the folder in MNIST_DIR, the 5,000 bundled digits, your own; auto takes what it can get."""
    path: Annotated[str, Field(min_length=1)] = "data/images"
    """folder: your images, a folder of pictures or of IDX files, or a .npz or .npy file."""
    image_size: PositiveInt | HeightAndWidth | None = None
    """Side, or [height, width]: images are scaled to cover it, and their middle is kept; null: all have one size."""
    channels: Literal["auto", 1, 3] = "auto"
    """Grey or colour; auto is grey if all images are."""
    max_unreadable: Annotated[int, Field(ge=0)] = 0
    """Pictures that may be unreadable; with more, the download fails."""
    mirrors: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Base URLs to try before torchvision's: http://, https:// or file://."""
    binarization: Binarization = "dynamic"
    """How grey becomes black and white: drawn for every batch, drawn once, cut at 0.5, or not at all."""
    validation_size: PositiveInt | Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Training images to choose the best epoch by: a number of them, or a fraction."""

    @field_validator("mirrors")
    @classmethod
    def _mirrors_are_urls(cls, mirrors: tuple[str, ...]) -> tuple[str, ...]:
        for url in mirrors:
            if not url.startswith(("http://", "https://", "file://")):
                raise ValueError(f"{url!r} is not a http://, https:// or file:// URL")
        return mirrors

    @model_validator(mode="after")
    def _source_has_the_dataset(self) -> Self:
        if self.source == "folder":
            return self
        if self.path != DataParams.model_fields["path"].default:
            raise ValueError(f"path is '{self.path}', which source '{self.source}' doesn't read: set source: folder")
        if self.dataset in get_args(MNISTLike):
            if self.image_size or self.channels != "auto":
                raise ValueError(f"image_size and channels are not for {self.dataset}: its images are grey, 28×28")
        elif self.source not in ("auto", "mirror"):
            raise ValueError(f"source '{self.source}' has no {self.dataset}, allowed are auto and mirror")
        if self.source == "bundled" and self.dataset != "MNIST":
            raise ValueError(f"source 'bundled' holds MNIST only, not {self.dataset}")
        return self

    @property
    def name(self) -> str:
        """Of the data set; with source folder, that of the folder or file."""
        return Path(self.path).stem if self.source == "folder" else self.dataset


class ModelParams(Section):
    """The model's parts and sizes."""

    architecture: Annotated[str, OneOf(ARCHITECTURE_NAMES)] = "mlp"
    """Fully connected or convolutional encoder and decoder."""
    hidden_dims: Annotated[tuple[PositiveInt, ...], Field(min_length=1, strict=False)] = (512, 512, 512)
    """Widths of the encoder's layers (conv: channels); the decoder has them in reverse."""
    dense_dims: Annotated[tuple[PositiveInt, ...], Field(strict=False)] = ()
    """Widths of fully connected layers between convolutions and latents (conv)."""
    latent_dim: PositiveInt = 40
    """Latent dimensions."""
    activation: Activation = "silu"
    """Nonlinearity; glu is a gated linear unit (mlp)."""
    residual: bool = True
    """Add a layer's input to its output where the widths are equal."""
    decoder_skip: bool = False
    """Feed the latents to every layer of the decoder, not only to the first (mlp)."""
    initialization: Initialization = "default"
    """Weight initialization; all but PyTorch's default set biases to 0."""
    prior: Annotated[str, OneOf(PRIOR_NAMES)] = "realnvp"
    """p(z): a standard normal, a learned mixture of normals, the VampPrior, or a normalizing flow."""
    prior_components: PositiveInt = 500
    """Components of a mixture prior."""
    prior_couplings: PositiveInt = 8
    """Affine couplings of the prior realnvp."""
    prior_width: PositiveInt = 128
    """Width of the two hidden layers of each of these couplings."""
    likelihood: Annotated[str, OneOf(LIKELIHOOD_NAMES)] = "auto"
    """p(x|z): the distribution of pixel values; auto is bernoulli if they are binarized, else discretized_logistic."""
    likelihood_components: PositiveInt = 2
    """Logistic distributions that discretized_logistic mixes for each pixel value."""
    lower_latent_dims: Annotated[tuple[PositiveInt, ...], Field(strict=False)] = ()
    """Latents of further stochastic layers, after the decoder's first, second … layer (conv: at each position)."""
    conditional: bool = False
    """Model p(x|z, label) instead of p(x|z): samples are then of a class that is asked for."""
    conditional_prior: bool = False
    """Model p(z|label), too: the prior, shifted and scaled for each class."""

    @model_validator(mode="after")
    def _check_architecture(self) -> Self:
        if self.decoder_skip and self.architecture != "mlp":
            raise ValueError(f"decoder_skip requires architecture 'mlp', not '{self.architecture}'")
        if self.dense_dims and self.architecture != "conv":
            raise ValueError(f"dense_dims requires architecture 'conv', not '{self.architecture}': use hidden_dims")
        if self.activation == "glu" and self.architecture != "mlp":
            raise ValueError(f"activation 'glu' requires architecture 'mlp', not '{self.architecture}'")
        if self.conditional and self.prior == "vampprior":
            raise ValueError("prior 'vampprior' requires conditional false: its pseudo-images have no labels")
        if self.conditional_prior and not self.conditional:
            raise ValueError("conditional_prior requires conditional true: the model has no labels")
        if len(self.lower_latent_dims) > len(self.hidden_dims):
            given, most = len(self.lower_latent_dims), len(self.hidden_dims)
            raise ValueError(f"lower_latent_dims has {given} entries, allowed are {most}: one for each of hidden_dims")
        return self

    @property
    def kl_per_dimension(self) -> bool:
        """Whether the KL has a closed form, dimension by dimension; otherwise it is estimated from samples."""
        return self.prior in FACTORIZED_PRIORS and not self.lower_latent_dims


class TrainParams(Section):
    """Training with `fit()`."""

    epochs: PositiveInt = 30
    """Passes over the training images."""
    batch_size: PositiveInt = 256
    """Images per training step."""
    optimizer: OptimizerName = "muon"
    """Optimizer; muon is for convolution kernels and small matrices, with Adam for all other weights."""
    learning_rate: PositiveFloat = 3e-3
    """Adam's initial learning rate; with one_cycle, its peak."""
    muon_learning_rate: PositiveFloat = 6e-3
    """The same for Muon."""
    lr_schedule: LRSchedule = "one_cycle"
    """Learning rate by step."""
    weight_decay: NonNegativeFloat = 0.0
    """Adam's L2 penalty; Muon's decoupled weight decay."""
    max_grad_norm: PositiveFloat | None = None
    """Clip the gradient's norm to this; null: no clipping."""
    objective: TrainObjective = "elbo"
    """What is maximized: the ELBO, or the importance-weighted bound."""
    importance_samples: PositiveInt = 1
    """Posterior samples per image."""
    elbo_epochs: Annotated[int, Field(ge=0)] = 0
    """iwae: first epochs, trained with the ELBO of one sample, which is faster; the bound is for the others."""
    doubly_reparameterized: bool = False
    """Use the lower-variance encoder gradient of the importance-weighted bound (DReG)."""
    beta: NonNegativeFloat = 1.0
    """Weight of the KL."""
    kl_warmup_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs over which that weight rises linearly to beta."""
    kl_cycles: PositiveInt = 1
    """How many times it rises: cyclical annealing."""
    free_bits: NonNegativeFloat = 0.0
    """Nats per latent dimension below which the KL is not penalized."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Validate and keep an exponential moving average of the weights with this decay a step; null: the weights."""
    early_stopping_patience: PositiveInt | None = None
    """Epochs without a better validation result before training stops; null: never."""
    device: DeviceName = "auto"
    """Device; auto is the fastest available."""
    precision: Precision = "auto"
    """Precision of the matrix products; auto is bf16 where the hardware supports it."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the training step; auto: on CUDA, and on a CPU for 1,000,000 images or more over all epochs."""
    mmd: NonNegativeFloat = 0.0
    """Weight of the squared MMD between posterior samples and prior in the loss, in nats; 0: not computed."""
    nproc: PositiveInt = 1
    """Processes among which each batch is divided: one a GPU, or one a share of the cores."""
    timeout: PositiveFloat = 1800.0
    """Seconds that a process waits for the others before it gives up."""

    @model_validator(mode="after")
    def _check_objective(self) -> Self:
        if self.doubly_reparameterized and self.objective != "iwae":
            raise ValueError("doubly_reparameterized requires objective 'iwae'")
        if self.elbo_epochs and not (self.objective == "iwae" and self.elbo_epochs < self.epochs):
            raise ValueError(f"elbo_epochs is {self.elbo_epochs}, allowed is less than epochs, with objective 'iwae'")
        if self.free_bits and self.objective != "elbo":
            raise ValueError("free_bits requires objective 'elbo': the importance-weighted bound has no KL term")
        if self.mmd and self.objective != "elbo":
            raise ValueError("mmd requires objective 'elbo'")
        if self.kl_cycles > 1 and not 0 < self.kl_warmup_epochs <= self.epochs / self.kl_cycles:
            raise ValueError(
                f"kl_warmup_epochs is {self.kl_warmup_epochs}, with kl_cycles {self.kl_cycles} allowed is 1 to "
                f"{self.epochs // self.kl_cycles}: the warm-up is a part of each cycle"
            )
        return self


def takes_fields_of(section: type[Section], *, without: Collection[str] = ()) -> Callable[[Function], Function]:
    """Decorate a function whose `**options` are fields of `section`: `help` and tab completion show them."""

    def decorate(function: Function) -> Function:
        own, fields = inspect.signature(function), inspect.signature(section)
        named = [parameter for parameter in own.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
        # Without the annotations, which are pydantic's.
        others = [
            parameter.replace(annotation=parameter.empty)
            for name, parameter in fields.parameters.items()
            if name not in {*own.parameters, *without}
        ]
        function.__signature__ = own.replace(parameters=named + others)  # type: ignore[attr-defined]
        return function

    return decorate


def check_together(model: ModelParams, train: TrainParams) -> None:
    """Raise ConfigError where `model` can't be trained with `train`."""
    if train.free_bits and not model.kl_per_dimension:
        raise ConfigError("train.free_bits requires a KL per dimension: model.prior 'standard', no lower_latent_dims")
    if train.doubly_reparameterized and model.lower_latent_dims:
        raise ConfigError("train.doubly_reparameterized requires a model without lower_latent_dims")


def resolved_likelihood(model: ModelParams, binarization: Binarization) -> ModelParams:
    """`model` with the likelihood that auto stands for. Raises ConfigError if it doesn't fit the binarization."""
    binary = binarization != "none"
    if model.likelihood == "auto":
        return model.model_copy(update={"likelihood": "bernoulli" if binary else "discretized_logistic"})
    if binary and model.likelihood not in BINARY_LIKELIHOODS:
        raise ConfigError(
            f"model.likelihood '{model.likelihood}' requires grey or colour values: data.binarization 'none', "
            f"not '{binarization}'"
        )
    if not binary and model.likelihood in BINARY_LIKELIHOODS:
        raise ConfigError(
            f"model.likelihood '{model.likelihood}' requires black-and-white images, not data.binarization 'none': "
            "allowed with it are 'discretized_logistic' and 'gaussian'"
        )
    return model


class EvaluateParams(Section):
    """How the test set is evaluated."""

    importance_samples: PositiveInt = 500
    """Posterior samples per test image, for the NLL; with one it is the −ELBO."""
    chunk_size: PositiveInt = 2000
    """Latents decoded at a time: bounds the memory."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the decoder's matrix products; bf16 is faster where the hardware has it."""


class RenderParams(Section):
    """How the figures are drawn."""

    columns: Annotated[int, Field(ge=2, le=20)] = 10
    """Images a row."""
    dpi: Annotated[int, Field(ge=30, le=600)] = 110
    """Dots per inch."""


class Range(Section):
    """An interval from `low` to `high`, both included."""

    low: int | float
    """The smallest value."""
    high: int | float
    """The largest value."""
    log: bool = False
    """Whether values are sampled on a logarithmic scale."""


Choices = tuple[Any, ...]


# What may change when a search is continued; the params of its run in MLflow can't.
CONTINUED = ("search.n_trials", "search.workers", "search.pruner", "search.finalists")


class SearchParams(Section):
    """The hyperparameter search."""

    n_trials: PositiveInt = 40
    """Total number of trials; a larger number adds to the existing ones."""
    epochs: PositiveInt = 10
    """Epochs of each trial."""
    workers: PositiveInt | Literal["auto"] = "auto"
    """Parallel processes; auto is one per GPU, or one per CPU core."""
    objective: Objective = "elbo"
    """elbo minimizes −ELBO at β = 1; rate_distortion has two objectives and prunes no trial."""
    pruner: Pruner = "median"
    """Which trials are stopped early."""
    finalists: Annotated[int, Field(ge=0)] = 3
    """elbo: best trials that are trained for train.epochs with three seeds, beside params.yaml's values; 0: none."""
    space: dict[str, Range | Choices] = Field(
        default={
            "latent_dim": Range(low=8, high=64),
            "beta": Range(low=0.5, high=2.0, log=True),
            "learning_rate": Range(low=3e-4, high=1e-2, log=True),
        }
    )
    """The searched parameters of model and train, each with a range or a list of choices."""

    @field_validator("space", mode="before")
    @classmethod
    def _space_is_searchable(cls, space: Any) -> dict[str, Range | Choices]:
        if not isinstance(space, Mapping) or not space:
            raise ValueError(f"{space!r} is not a section with a line for each parameter to search")
        return {name: _domain(name, values) for name, values in space.items()}


SEARCHED: dict[str, type[Section]] = {"model": ModelParams, "train": TrainParams}
NOT_SEARCHED = {
    "epochs": "search.epochs sets the length of all trials",
    "objective": "trials are ranked by the metric of one objective",
    "likelihood": "probabilities and densities don't compare",
    "conditional": "p(x|label) and p(x) don't compare",
}


def searched_name(name: str) -> str:
    """The dotted name of parameter `name` of model or train. Raises ValueError if it isn't a searchable parameter."""
    if name == "seed":  # searched by the finals
        return name
    if name in NOT_SEARCHED:
        raise ValueError(f"{name} can't be searched: {NOT_SEARCHED[name]}")
    for section, model in SEARCHED.items():
        if name in model.model_fields:
            return f"{section}.{name}"
    known = sorted({*ModelParams.model_fields, *TrainParams.model_fields} - set(NOT_SEARCHED))
    close = difflib.get_close_matches(str(name).split(".")[-1], known, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    raise ValueError(f"'{name}' is no parameter of model or train: {hint}allowed are {', '.join(known)}")


def _domain(name: str, values: Any) -> Range | Choices:
    """The checked range or choices of a parameter. Raises ValueError if one of the values isn't allowed."""
    section = SEARCHED.get(searched_name(name).split(".")[0], Seeded)
    if isinstance(values, list | tuple):
        if not values:
            raise ValueError(f"{name} has no values to choose from")
        return tuple(_allowed(section, name, value) for value in values)
    try:
        domain = values if isinstance(values, Range) else Range.model_validate(values)
    except ValidationError:
        raise ValueError(
            f"{name} is {values!r}, allowed is a list of values, or a range such as {{low: 1, high: 8, log: true}}"
        ) from None
    low, high = (_allowed(section, name, value) for value in (domain.low, domain.high))
    if low > high:
        raise ValueError(f"{name}: low {low!r} is above high {high!r}")
    if domain.log and low <= 0:
        raise ValueError(f"{name}: a logarithmic range starts above 0, not at {low!r}")
    return Range(low=low, high=high, log=domain.log)


def _allowed(section: type[Section], name: str, value: Any) -> Any:
    alone = _alone(section, name)
    try:
        return getattr(alone.model_validate({name: value}), name)
    except ValidationError as error:
        raise ValueError(describe(error, alone)) from None


@cache  # to build one takes ten milliseconds, and each list of choices would again and again
def _alone(section: type[Section], name: str) -> type[Section]:
    """`section` with one parameter: what other parameters it goes with is seen when they are all there."""
    field = section.model_fields[name]
    return create_model(section.__name__, __base__=Section, **{name: (field.annotation, field)})  # type: ignore[call-overload, no-any-return]


class Params(Seeded):
    """The whole of params.yaml."""

    data: DataParams = DataParams()
    model: ModelParams = ModelParams()
    train: TrainParams = TrainParams()
    evaluate: EvaluateParams = EvaluateParams()
    render: RenderParams = RenderParams()
    search: SearchParams = SearchParams()

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        check_together(self.model, self.train)
        resolved_likelihood(self.model, self.data.binarization)
        if self.train.objective == "iwae" and "importance_samples" in self.search.space:
            raise ValueError(
                "search.space: importance_samples can't be searched with train.objective 'iwae', since bounds with "
                "different numbers of samples don't compare"
            )
        return self

    @property
    def resolved_model(self) -> ModelParams:
        """What the model is made with: `model`, with the likelihood that auto stands for."""
        return resolved_likelihood(self.model, self.data.binarization)

    def flat(self) -> dict[str, Any]:
        """Every parameter under its dotted name, `{"train.beta": 1.0, …}`, as MLflow shows them."""
        return dict(_flatten(self.model_dump()))

    def replaced(self, values: Mapping[str, Any]) -> "Params":
        """The same with other values under their dotted names. Raises ConfigError where they aren't allowed."""
        tree = self.model_dump()
        for name, value in values.items():
            section, _, key = name.rpartition(".")
            (tree[section] if section else tree)[key] = value
        return checked(Params, tree)


SectionType = TypeVar("SectionType", bound=Section)


def checked(section: type[SectionType], values: Mapping[str, Any]) -> SectionType:
    """The section with these values. Raises ConfigError, in one line that names each that isn't allowed."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error, section)) from None


def load_params(path: Path | str = "params.yaml", overrides: Mapping[str, Any] | None = None) -> Params:
    """Read and check params.yaml; `overrides` maps dotted names to values that win over the file's.

    Raises ConfigError, in one line that names the key, what was given and what is allowed.
    """
    path = Path(path)
    try:
        # YAML 1.2, as DVC reads it: 1e-3 is a number there, a string in YAML 1.1.
        tree = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path} not found in {Path.cwd()}: run from the project's root, or bring it back with "
            f"`git checkout {path}`"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from None
    except (YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, an impossible date
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold sections such as `train:`, not {tree!r}")
    for name, value in (overrides or {}).items():
        section, _, key = name.rpartition(".")
        target = tree.setdefault(section, {}) if section else tree
        if isinstance(target, dict):  # otherwise the section itself is refused below
            target[key] = value
    try:
        return checked(Params, tree)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """A pydantic error in one line: every key once, with what was given and what is allowed."""
    complaints: dict[str, list[ErrorDetails]] = {}  # a value that may be of several types has one for each
    for details in error.errors():
        complaints.setdefault(_name(details, model), []).append(details)
    message = "; ".join(" ".join(_complaint(name, found, model).split()) for name, found in complaints.items())
    return hide_passwords(message)


def _name(details: ErrorDetails, model: type[BaseModel]) -> str:
    """The dotted name of the key complained of. Behind it, pydantic names the type that was tried: not a key."""
    names, section = [], _section(model, [])
    for part in details["loc"]:
        if section or isinstance(part, int):
            names.append(str(part))
        section = _section(model, names)
    return ".".join(names)


def _section(model: type[BaseModel], names: Sequence[str]) -> type[BaseModel] | None:
    """The section with this dotted name; None where that is a value, or nothing."""
    for name in names:
        field = model.model_fields.get(name)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return None
        model = field.annotation
    return model


def _complaint(name: str, found: list[ErrorDetails], model: type[BaseModel]) -> str:
    if found[0]["type"] == "extra_forbidden":
        *holder, key = name.split(".")
        section = _section(model, holder) or model
        close = difflib.get_close_matches(key, section.model_fields, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        return f"unknown key '{name}': {hint}allowed are {', '.join(sorted(section.model_fields))}"
    if found[0]["type"] == "value_error":
        message = found[0]["msg"].removeprefix("Value error, ")
        return f"{name}: {message}" if name else message
    if found[0]["type"] == "model_type":
        return f"{name} is {_shown(found[0]['input'])}, allowed is a section of `key: value` lines"
    allowed = dict.fromkeys(
        details["msg"].removeprefix("Input should be ").replace("tuple", "list") for details in found
    )
    return f"{name} is {_shown(found[0]['input'])}, allowed is {' or '.join(allowed)}"


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # Python prints integers of up to 4,300 digits
        return "a huge integer"


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


if __name__ == "__main__":  # `make repro` asks before DVC removes a stage's earlier outputs
    try:
        load_params()
    except ConfigError as error:
        sys.exit(f"error: {error}")
