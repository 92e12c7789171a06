# Same lock file, same steps as `make setup`; two stages, so that compilers and caches stay behind.
FROM python:3.12-slim-bookworm AS build
RUN apt-get update && apt-get install --yes --no-install-recommends make git gcc g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /cgal
COPY Makefile pyproject.toml requirements.lock README.md ./
COPY cgal cgal
COPY flows flows
RUN make setup

FROM python:3.12-slim-bookworm
RUN apt-get update && apt-get install --yes --no-install-recommends make git && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 cgal
WORKDIR /cgal
COPY --from=build --chown=cgal:cgal /cgal /cgal
COPY --chown=cgal:cgal . .
RUN touch .venv/installed && chown cgal:cgal /cgal
USER cgal
ENV PATH=/cgal/.venv/bin:$PATH
ENTRYPOINT ["cgal"]
CMD ["--help"]
