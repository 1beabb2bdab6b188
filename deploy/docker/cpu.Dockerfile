# The image of gateway, router, rollout and reward: no torch, no GPU.
#   docker build --file deploy/docker/cpu.Dockerfile --tag sluice-cpu .
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
WORKDIR /sluice
RUN python -m venv /opt/sluice
ENV PATH=/opt/sluice/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY pyproject.toml README.md LICENSE requirements.lock ./
COPY shared shared
COPY services services
COPY sluice sluice
COPY deploy deploy
RUN pip install --constraint requirements.lock ".[gateway,reward,rollout,router]"

FROM python:${PYTHON}-slim
COPY --from=build /opt/sluice /opt/sluice
ENV PATH=/opt/sluice/bin:$PATH PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
RUN useradd --create-home --uid 10001 sluice && install -d -o sluice /data /plugins
USER sluice
VOLUME /data
WORKDIR /plugins
