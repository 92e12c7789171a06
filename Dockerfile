# Same lock file, same steps as `make setup`; two stages, so that compilers and caches stay behind.
FROM python:3.12-slim-bookworm AS build
# Debian's mirrors keep one version of a package, so a pinned one is soon gone.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends make git gcc g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /cgal
COPY Makefile pyproject.toml requirements.lock README.md LICENSE ./
# The seed of `cgal init --demo`
COPY .dvc/bundled .dvc/bundled
COPY cgal cgal
COPY flows flows
COPY study study
RUN make setup

FROM python:3.12-slim-bookworm
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends git && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 cgal && install --directory --owner=cgal /project \
    && install --directory --mode=1777 /state
COPY --from=build /cgal /cgal
ARG CGAL_COMMIT=""
ENV PATH=/cgal/.venv/bin:$PATH \
    CGAL_COMMIT=$CGAL_COMMIT \
    NUMBA_CACHE_DIR=/state/numba \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    MLFLOW_DISABLE_TELEMETRY=true \
    DO_NOT_TRACK=true \
    DVC_NO_ANALYTICS=true
USER 1000
WORKDIR /project
CMD ["cgal", "--help"]
