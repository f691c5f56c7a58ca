# The environment of the project, which is mounted at /project (docs/team.md):
#   docker build --tag vae .                           TORCH=cu130 for CUDA, which the machine's driver must support
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/project" vae dvc repro
FROM python:3.11-slim-bookworm AS base
# git is for DVC, g++ for torch.compile. Debian removes old versions, so that none can be named.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 vae
WORKDIR /project

FROM base AS build
ARG TORCH=cpu
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY pyproject.toml requirements.lock ./
RUN pip install --no-cache-dir --constraint requirements.lock \
    --extra-index-url "https://download.pytorch.org/whl/$TORCH" torch torchvision
COPY LICENSE README.md ./
COPY src src
RUN pip install --no-cache-dir --constraint requirements.lock --editable '.[pipeline,databases,remotes]'

FROM base
COPY --from=build /opt/venv /opt/venv
# Any user may run it: what libraries cache goes to /tmp.
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp DVC_NO_ANALYTICS=1
USER 1000
CMD ["dvc", "repro"]
