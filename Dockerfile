# One image for both programs; the command is a task of deno.json and its arguments:
#
#   docker build --tag site_checker .
#   docker run --rm site_checker producer --once --dry-run --url https://example.com/

# The version of .deno-version.
ARG DENO_VERSION=2.9.6

FROM denoland/deno:${DENO_VERSION} AS build
ENV DENO_DIR=/deno-dir
WORKDIR /src/app
COPY deno.json deno.lock ./
# Leaves out what only the local stack and the tests import, and installs the rest in the versions of deno.lock.
RUN deno remove @peculiar/x509 embedded-postgres reflect-metadata uuid yaml
COPY lib lib
COPY producer.ts consumer.ts ./
# Turns TypeScript into JavaScript here rather than at each start, and fails where deno.lock does not fit.
RUN deno cache --frozen producer.ts consumer.ts lib/evaluator_worker.ts lib/outbox_worker.ts
# Of the producer, for any user; a volume that is made for it takes its permissions.
RUN mkdir --mode=777 spool

# No shell, no package manager.
FROM denoland/deno:distroless-${DENO_VERSION}
ENV DENO_DIR=/deno-dir DENO_NO_UPDATE_CHECK=1 NO_COLOR=1
# Relative file names begin here; certificates and config.ini are mounted at /src/app/config.
WORKDIR /src/app
COPY --from=build /deno-dir /deno-dir
COPY --from=build /src/app /src/app
# Any user will do: nothing is written but for the producer's spool, /src/app/spool.
USER 65532:65532
# A task has the flags and permissions that it has without containers, and hands SIGTERM on to its program.
ENTRYPOINT ["deno", "task", "--quiet"]
CMD ["producer", "--help"]
