# The image of trainer and engine: torch, SGLang and its CUDA kernels. Both in one, for the two ends of a weight
# broadcast must have the same NCCL. SGLang chooses the versions of torch and transformers.
#   docker build --file deploy/docker/gpu.Dockerfile --tag sluice-gpu .
ARG CUDA=13.0.1

# devel: some kernels are compiled at first use, with nvcc, gcc and the headers of Python
FROM nvidia/cuda:${CUDA}-devel-ubuntu24.04
ARG SGLANG=0.5.17
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3.12 python3.12-venv python3.12-dev gcc g++ libnuma1 \
    && rm -rf /var/lib/apt/lists/* \
    && python3.12 -m venv /opt/sluice
ENV PATH=/opt/sluice/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
# the big packages first: the source changes more often than they do
RUN pip install "sglang==${SGLANG}"
WORKDIR /sluice
COPY pyproject.toml README.md LICENSE ./
COPY shared shared
COPY services services
COPY sluice sluice
COPY deploy deploy
RUN pip install ".[trainer,engine,rollout]"
RUN useradd --create-home --uid 10001 sluice && install -d -o sluice /data /plugins
USER sluice
VOLUME /data
WORKDIR /plugins
