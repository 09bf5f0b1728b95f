# A search in a container.
#
#   docker build -t asiarch --build-arg EXTRAS=gcs .         on CPUs; tpu,gcs for Cloud TPU; gpu,gcs for NVIDIA
#   docker run --rm -v asiarch-runs:/home/asiarch/app/runs asiarch search --config=configs/default.py --workdir=runs/default
#
# docs/CLOUD_TPU.md says which flags of docker run give the jail of proposals what it needs.
FROM python:3.12-slim

# bubblewrap is the jail of proposed source (docs/SECURITY.md).
RUN apt-get update \
  && apt-get install --yes --no-install-recommends bubblewrap \
  && rm -rf /var/lib/apt/lists/*

# A search is not to run as root. Mounted runs keep this owner.
RUN useradd --create-home --uid 1000 asiarch
WORKDIR /home/asiarch/app
RUN mkdir runs && chown asiarch runs

COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY asiarch_jax asiarch_jax
COPY pallas_kernels pallas_kernels
ARG EXTRAS=gcs
RUN pip install --no-cache-dir --constraint requirements.lock ".${EXTRAS:+[$EXTRAS]}"
COPY configs configs

USER asiarch
ENV PYTHONUNBUFFERED=1
ENTRYPOINT ["asiarch"]
