# asvr for NVIDIA GPUs.
#
#   docker build -t asvr .
#   docker run --rm --gpus all --shm-size=16g -v "$PWD:/workspace" asvr train asvr_mini
#
# The wheels of torch bring the CUDA libraries. The base image brings what the NVIDIA container toolkit asks for, and the
# driver comes from the host. Read models and data from mounted folders: -v /data/models:/models -e ASVR_MODEL_ZOO=/models
FROM nvidia/cuda:13.0.0-base-ubuntu24.04

# A compiler and Python's headers: torch.compile builds kernels with them.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# What a run writes belongs to this user: --build-arg UID=$(id -u) makes it yours.
ARG UID=1000
RUN useradd --create-home --non-unique --uid "${UID}" asvr \
    && install -d -o asvr /opt/asvr /opt/venv /workspace
# hadolint ignore=DL3066
USER asvr
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1

COPY --chown=asvr . /opt/asvr
ARG EXTRAS=mini,cuda,data,demo,logs,lora,diffusion
RUN pip install --no-cache-dir "/opt/asvr[${EXTRAS}]"

WORKDIR /workspace
EXPOSE 7860
ENTRYPOINT ["asvr"]
CMD ["--help"]
