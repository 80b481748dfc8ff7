# syntax=docker/dockerfile:1

# CUDA 13.0 is what the pinned torch is built for; its libraries come with torch's own wheels.
ARG BASE=nvidia/cuda:13.0.3-runtime-ubuntu24.04

FROM ${BASE} AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV DEBIAN_FRONTEND=noninteractive
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY kernels kernels
COPY adapters adapters
COPY server server
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/weft \
 && /opt/weft/bin/pip install --disable-pip-version-check --constraint constraints.txt .

FROM ${BASE}
LABEL org.opencontainers.image.title="weft" \
      org.opencontainers.image.description="Many adapters, one base model, an OpenAI API" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV DEBIAN_FRONTEND=noninteractive
# Triton compiles the launchers of its kernels when they first run: gcc and Python's headers.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 python3-dev gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --user-group --create-home weft \
 && install --directory --owner weft --group weft /models /state
COPY --from=build /opt/weft /opt/weft
# Without PYTHONSAFEPATH a folder named `kernels` in the working directory would shadow a package.
ENV PATH=/opt/weft/bin:$PATH \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/models \
    XDG_STATE_HOME=/state \
    WEFT_HOST=0.0.0.0 \
    WEFT_PORT=8000
USER 10001:10001
WORKDIR /home/weft
VOLUME ["/models", "/state"]
EXPOSE 8000
STOPSIGNAL SIGTERM
# Healthy is: a real token was decoded lately. Loading a large model may take the start period.
HEALTHCHECK --interval=15s --timeout=10s --start-period=15m --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"WEFT_PORT\"]}/ready', timeout=8)"]
ENTRYPOINT ["weft"]
CMD ["demo"]
