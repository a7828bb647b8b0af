# What `make paper` does, in a container:
#   docker build -t deepsimreg . && docker run --rm -v "$PWD/runs:/deepsimreg/runs" deepsimreg
# torch is its CPU build; for a GPU leave out PIP_EXTRA_INDEX_URL, and give `docker run --gpus all`.
FROM python:3.11-slim-bookworm
RUN apt-get update && apt-get install -y --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
WORKDIR /deepsimreg
COPY . .
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu PIP_NO_CACHE_DIR=1
RUN make .venv/installed PYTHON=python3.11
CMD ["make", "paper"]
