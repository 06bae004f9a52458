# The pinned set and slide_mm, with mmcv compiled for CPUs:
#   docker build -t slide_mm .
# or for GPUs of the listed compute capabilities:
#   docker build -t slide_mm:cuda --build-arg BASE=nvidia/cuda:12.8.1-devel-ubuntu24.04 \
#       --build-arg FORCE_CUDA=1 --build-arg TORCH_CUDA_ARCH_LIST="8.0 8.6 9.0" .
ARG BASE=debian:12
FROM ${BASE}

RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git make python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /slide_mm
# What the environment is made of comes first: mmcv is compiled again only when it changes.
COPY requirements.txt pyproject.toml setup.py README.md LICENSE ./
COPY tools/misc/setup_env.py tools/misc/
COPY slide_mm/__init__.py slide_mm/
ARG FORCE_CUDA=0
ARG TORCH_CUDA_ARCH_LIST
RUN python3 tools/misc/setup_env.py --venv .venv

COPY . .
ENV PATH=/slide_mm/.venv/bin:$PATH
CMD ["make", "demo"]
