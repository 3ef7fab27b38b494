# Two targets of one base: `docker build --target serve .` and `--target train .`; neither runs as root.
FROM python:3.11-slim-bookworm AS base
# Where to find a CPU build of torch, if pip would otherwise bring CUDA.
ARG TORCH_INDEX_URL=""
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 HEADSTOCK_HOME=/var/lib/headstock
# The compiler is for the CPU kernels, which are built on the machine that runs them.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/headstock
COPY requirements.lock requirements-backends.txt backbones.txt ./
RUN pip install ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} torch==2.13.0 \
    && pip install --no-deps -r backbones.txt
COPY pyproject.toml README.md LICENSE ./
COPY adapters adapters
COPY training training
COPY service service
RUN pip install -c requirements.lock -c requirements-backends.txt ".[cluster]"
RUN useradd --uid 10001 --create-home headstock \
    && install -d -o headstock -g headstock /var/lib/headstock

# `train` first: a plain `docker build .` makes the last target, the server.
FROM base AS train
# seqeval comes as source, and an old pip builds it in a way that fails now.
RUN pip install --use-pep517 -c requirements.lock -c requirements-backends.txt ".[train,cluster,kubernetes]"
USER headstock
# No volume: launcher container mounts what a run writes, and nothing else is to be written.
ENTRYPOINT ["python", "-m", "training"]

FROM base AS serve
# The trainer's packages are not in here: jobs wait for `headstock worker`, as the target train runs it.
ENV HEADSTOCK_JOB_WORKERS=0
USER headstock
VOLUME /var/lib/headstock
EXPOSE 8000
# It listens on all addresses, so it wants a key: docker run … headstock keys create NAME --scopes admin, on its volume.
HEALTHCHECK --interval=10s --start-period=120s CMD \
    ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health')"]
CMD ["headstock", "serve", "--host", "0.0.0.0"]
